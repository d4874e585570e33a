"""The table of ranges: whole, and each range as it says."""

import math

import pytest

from configs import chitchat, common, depth, gpt2, llama, tiny
from gptjax.core.console import UserError
from gptjax.train.ranges import RANGES, check_numbers, numbers_of, pattern_of


def test_every_number_of_a_config_has_its_range_and_no_other():
    names = {pattern_of(name) for name, _ in numbers_of(common.base())}
    assert names == RANGES.keys()


@pytest.mark.parametrize('make', [common.base, chitchat.get_config, tiny.get_config])
def test_what_is_used_is_allowed(make):
    check_numbers(make())


@pytest.mark.parametrize('variant', ['124M', '1558M'])
def test_what_the_papers_use_is_allowed(variant):
    check_numbers(gpt2.get_config(variant))
    check_numbers(depth.get_config())
    check_numbers(llama.get_config())


@pytest.mark.parametrize('value', [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize('name', RANGES)
def test_what_is_not_finite_is_refused_everywhere(name, value):
    config = common.base()
    name = name.replace('*', 'chitchat')
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f'^{name}={value}: use '):
        check_numbers(config)


@pytest.mark.parametrize(
    'name, refused, allowed',
    (
        ('model.num_kv_heads', -1, 0),
        ('model.head_dim', -1, 0),
        ('model.mlp_width', -1, 0),
        ('model.num_layers', 0, 1),
        ('data.validation_fraction', 7.0, 0.5),
        ('data.validation_fraction', 1.0, 0.99),
        ('data.workers', -1, 0),
        ('data.sources.chitchat.weight', -0.5, 0.0),
        ('data.sources.chitchat.limit', -1, 0),
        ('mesh.data', -2, -1),
        ('mesh.data', 0, 1),
        ('optim.beta1', 1.0, 0.0),
        ('optim.final_scale', 1.5, 1.0),
        ('train.profile_step', -2, -1),
        ('eval.choices', 1, 2),
        ('eval.top_p', 0.0, 1.0),
        ('seed', 2**32, 2**32 - 1),
    ),
)
def test_the_ends_of_ranges(name, refused, allowed):
    config = common.base()
    config.update_from_flattened_dict({name: allowed})
    check_numbers(config)
    config.update_from_flattened_dict({name: refused})
    with pytest.raises(UserError, match=f'^{name}={refused}: use '):
        check_numbers(config)
    assert not any(name.endswith('.bias') for name, _ in numbers_of(config))
