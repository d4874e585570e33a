"""Configs of reinforcement learning that cannot be meant are refused by name."""

import pytest

from configs import common, sums
from configs import grpo as grpo_configs
from configs import ppo as ppo_configs
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.post import grpo, policy_gradient, ppo
from gptjax.train import config_checks


def rl(section='grpo'):
    config = common.base()
    config.policy = common.policy_section()
    config[section] = getattr(common, f'{section}_section')()
    config.train.update(num_steps=10, batch_size=256)
    return config


@pytest.mark.parametrize('variant', [*grpo_configs.VARIANTS, ''])
def test_configs_of_grpo_are_fine(variant):
    config = grpo_configs.get_config(variant)
    grpo.check_config(config)
    policy_gradient.check_policy(config)


@pytest.mark.parametrize('variant', ['', 'reward=runs/reward'])
def test_configs_of_ppo_are_fine(variant):
    config = ppo_configs.get_config(variant)
    ppo.check_config(config)
    policy_gradient.check_policy(config)


def test_variants_that_are_not_there():
    for module in (grpo_configs, ppo_configs, sums):
        with pytest.raises(ValueError, match='nothing'):
            module.get_config('nothing')


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        (
            'policy.kl_horizon',
            9,
            'kl_horizon=9 does nothing where .* policy.kl_horizon=0',
        ),
        ('train.profile_step', 3, 'train.profile_step=3 does nothing in ppo and grpo'),
        ('policy.overlong_buffer', 17, 'more than policy.max_tokens=16'),
        ('train.batch_size', 100, 'does not divide .* = 256 replies'),
        ('policy.epochs', 3, 'train.num_steps=10 is no multiple of the 3 updates'),
    ],
)
def test_what_all_have_in_common(field, value, told):
    config = rl()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=told):
        policy_gradient.check_policy(config)


def test_kl_is_in_the_reward_or_in_the_loss():
    config = rl()
    config.policy.update(kl_reward=0.1, kl_loss=0.1)
    with pytest.raises(UserError, match='count the KL twice: set one of them to 0'):
        policy_gradient.check_policy(config)


def test_a_group_is_more_than_one_reply():
    config = rl()
    config.policy.replies = 1
    with pytest.raises(UserError, match='policy.replies=1: .*within a group'):
        grpo.check_config(config)


def test_reinforce_makes_one_update_a_rollout():
    config = rl()
    config.grpo.objective = 'reinforce'
    grpo.check_config(config)
    config.grpo.clip_high = 0.28
    with pytest.raises(UserError, match='clip_high=0.28 does nothing .*clip_high=0.2'):
        grpo.check_config(config)
    config.grpo.clip_high = 0.2
    config.train.batch_size = 128
    with pytest.raises(UserError, match='one update a rollout: .* = 256'):
        grpo.check_config(config)


def test_a_head_does_not_begin_as_a_reward_model():
    config = rl('ppo')
    config.ppo.critic_run = 'runs/reward'
    with pytest.raises(UserError, match='critic_run=runs/reward does nothing where'):
        ppo.check_config(config)


def test_text_beside_replies_divides_into_parts():
    config = rl('ppo')
    config.train.accumulation = 3
    with pytest.raises(UserError, match='ppo.ptx_rows=32 is not divisible by .* = 6'):
        ppo.check_text_rows(config, shards=2)
    config.ppo.ptx_rows = 36
    ppo.check_text_rows(config, shards=2)


def test_dropout_of_a_flag_is_refused_and_that_of_the_start_is_not(tmp_path):
    config = rl()
    config.start = common.start_section(str(tmp_path))
    config.model.residual_dropout = 0.1
    run_dir.write_config(config, tmp_path)
    config_checks.check_dropout(config)
    config.model.residual_dropout = 0.0
    config_checks.check_dropout(config)
    config.model.attention_dropout = 0.2
    with pytest.raises(UserError, match='model.attention_dropout=0.2 does nothing'):
        config_checks.check_dropout(config)
