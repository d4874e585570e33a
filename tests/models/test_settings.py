"""Derived sizes of a model, and refused ones."""

import pytest

from gptjax.core.console import UserError
from gptjax.models import settings
from tests import helpers


def resolve(**model):
    return settings.resolve(helpers.config(**model).model, 96)


def test_sizes_of_zero_get_defaults_and_others_stay():
    resolved = resolve(width=96, num_heads=6, mlp='gelu')
    sizes = resolved.num_kv_heads, resolved.head_dim, resolved.mlp_width
    assert (*sizes, resolved.vocab_size) == (6, 16, 384, 96)
    resolved = resolve(num_kv_heads=2, head_dim=10, mlp_width=50)
    assert (resolved.num_kv_heads, resolved.head_dim, resolved.mlp_width) == (2, 10, 50)


@pytest.mark.parametrize('width, mlp_width', [(96, 256), (384, 1024), (4096, 10944)])
def test_swiglu_has_as_many_parameters_as_two_matrices_of_four_widths(width, mlp_width):
    resolved = resolve(width=width, mlp='swiglu')
    assert resolved.mlp_width == mlp_width
    assert mlp_width % 64 == 0
    assert 8 * width <= 3 * mlp_width < 8 * width + 3 * 64


def test_settings_are_frozen_and_equal_by_value():
    left, right = resolve(windows=[8, 0]), resolve(windows=(8, 0))
    assert left == right and hash(left) == hash(right)
    assert left != resolve(windows=(0,))
    with pytest.raises(AttributeError):
        left.width = 64


def test_resolve_does_not_change_the_config():
    config = helpers.config()
    settings.resolve(config.model, 96)
    assert config.model.head_dim == 0
    assert 'vocab_size' not in config.model


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(width=30, num_heads=4),
            'model.num_heads=4 does not divide model.width=30',
        ),
        (dict(head_dim=7), 'model.head_dim=7 .* is odd'),
        (
            dict(num_kv_heads=3),
            'model.num_kv_heads=3 does not divide model.num_heads=4',
        ),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        resolve(**changes)


def test_an_odd_head_dim_is_valid_without_rotary_positions():
    assert resolve(head_dim=7, position='none').head_dim == 7
