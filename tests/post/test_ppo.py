"""PPO: its config, and PPO-ptx, pretraining text in the updates."""

import numpy as np
import pytest

from configs import common
from configs import ppo as ppo_configs
from gptjax.core.console import UserError
from gptjax.post import policy_gradient, ppo
from tests import runs
from tests.post import starts


@pytest.mark.parametrize('variant', ['', 'reward=runs/reward'])
def test_configs_of_ppo_are_fine(variant):
    config = ppo_configs.get_config(variant)
    ppo.check_config(config)
    policy_gradient.check_policy(config)


def test_a_head_does_not_begin_as_a_reward_model():
    config = starts.bare_config('ppo')
    config.ppo.critic_run = 'runs/reward'
    with pytest.raises(UserError, match='critic_run=runs/reward does nothing where'):
        ppo.check_config(config)


def test_text_beside_replies_divides_into_parts():
    config = starts.bare_config('ppo')
    config.train.accumulation = 3
    with pytest.raises(UserError, match='ppo.ptx_rows=32 is not divisible by .* = 6'):
        ppo.check_text_rows(config, shards=2)
    config.ppo.ptx_rows = 36
    ppo.check_text_rows(config, shards=2)


def config_for(run, **fields):
    config = common.base()
    config.start = common.start_section(str(run))
    config.ppo = common.ppo_section()
    config.ppo.update(dict(ptx=0.5, ptx_run=str(run), ptx_rows=4))
    config.ppo.update(fields)
    return config


def test_text_is_a_function_of_the_update_and_weighs_its_own_mean(prepared_run):
    config = config_for(prepared_run)
    text_arrays = ppo.make_text_arrays(config, ppo.open_text(config))
    batch = dict(weights=np.array([[0, 1, 1, 1], [0, 1, 0, 0]], np.float32))
    first, again, other = (text_arrays(number, batch)['ptx'] for number in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert first['inputs'].shape[0] == 4
    assert (first['inputs'] != other['inputs']).any()
    # Divided by the replies' 4 tokens, as the step does, they are a mean.
    assert first['weights'].sum() / 4 == pytest.approx(1, rel=1e-6)


def test_text_that_does_not_fit_is_refused(prepared_run, tmp_path):
    with pytest.raises(UserError, match='set ppo.ptx_run to the run with the text'):
        ppo.open_text(config_for(prepared_run, ptx_run=''))
    with pytest.raises(UserError, match='is not there: run the stage `prepare`'):
        ppo.open_text(config_for(prepared_run, ptx_run=str(tmp_path)))
    other = runs.copy(prepared_run, tmp_path / 'other')
    with open(other / 'tokenizer' / 'tokenizer.model', 'ab') as file:
        file.write(b'\n')
    with pytest.raises(UserError, match='prepared with another tokenizer'):
        config = config_for(prepared_run)
        config.start.run = str(other)
        ppo.open_text(config)
