"""Defaults worked out, and everything that cannot work refused by name."""

import pytest
from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.models import settings
from tests import helpers


def resolve(**model):
    return settings.resolve(helpers.config(**model).model, 96)


def test_zeros_stand_for_what_follows_from_the_rest():
    resolved = resolve(width=96, num_heads=6, mlp='gelu')
    assert resolved.num_kv_heads == 6
    assert resolved.head_dim == 16
    assert resolved.mlp_width == 384
    assert resolved.vocab_size == 96


def test_what_is_given_stays():
    resolved = resolve(num_kv_heads=2, head_dim=10, mlp_width=50)
    assert (resolved.num_kv_heads, resolved.head_dim, resolved.mlp_width) == (2, 10, 50)


@pytest.mark.parametrize('width, mlp_width', [(96, 256), (384, 1024), (4096, 10944)])
def test_swiglu_costs_what_two_maps_of_four_widths_do(width, mlp_width):
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


def test_a_run_that_is_older_than_a_field_has_what_was_before():
    model = helpers.config(logit_softcap=3.0, unroll=2).model.to_dict()
    assert model.keys() == {*settings.BEFORE, *settings.SIZES}, 'gptjax/models/settings'
    del model['attention_softcap'], model['unroll']
    resolved = settings.resolve(ConfigDict(model), 96)
    assert (resolved.attention_softcap, resolved.unroll) == (0.0, 1)
    assert resolved.logit_softcap == 3.0
    with pytest.raises(UserError, match='model.experts=4: no such field here'):
        settings.resolve(ConfigDict(dict(model, experts=4)), 96)
    del model['width']
    with pytest.raises(UserError, match='model.width is missing'):
        settings.resolve(ConfigDict(model), 96)


def test_the_config_itself_is_left_alone():
    config = helpers.config()
    settings.resolve(config.model, 96)
    assert config.model.head_dim == 0
    assert 'vocab_size' not in config.model


@pytest.mark.parametrize(
    'changes, told',
    [
        (
            dict(position='sine'),
            "model.position='sine': use one of rotary, learned, none",
        ),
        (dict(norm='batch'), "model.norm='batch'"),
        (dict(mlp='relu'), "model.mlp='relu'"),
        (dict(dtype='int8'), "model.dtype='int8'"),
        (dict(remat='some'), "model.remat='some'"),
        (dict(num_layers=0), 'model.num_layers=0: use a positive number'),
        (dict(context=-1), 'model.context=-1'),
        (dict(num_heads=0), 'model.num_heads=0'),
        (
            dict(width=30, num_heads=4),
            'model.num_heads=4 does not divide model.width=30',
        ),
        (dict(head_dim=7), 'model.head_dim=7 is odd'),
        (
            dict(num_kv_heads=3),
            'model.num_kv_heads=3 does not divide model.num_heads=4',
        ),
        (dict(windows=()), r'model.windows=\(\)'),
        (dict(windows=(4, -1)), r'model.windows=\(4, -1\)'),
        (dict(residual_dropout=1.0), 'model.residual_dropout=1.0'),
        (dict(attention_dropout=-0.1), 'model.attention_dropout=-0.1'),
    ],
    ids=str,
)
def test_refusals_name_the_field(changes, told):
    with pytest.raises(UserError, match=told):
        resolve(**changes)


def test_an_odd_head_is_fine_without_rotary_positions():
    assert resolve(head_dim=7, position='none').head_dim == 7
