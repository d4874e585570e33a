"""Configs of reinforcement learning that cannot be meant are refused by name."""

import pytest

from configs import common, sums
from configs import grpo as grpo_configs
from configs import ppo as ppo_configs
from gptjax.errors import UserError
from gptjax.post import grpo, policy, ppo


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
    policy.check_config(config)


@pytest.mark.parametrize('variant', ['', 'reward=runs/reward'])
def test_configs_of_ppo_are_fine(variant):
    config = ppo_configs.get_config(variant)
    ppo.check_config(config)
    policy.check_config(config)


def test_variants_that_are_not_there():
    for module in (grpo_configs, ppo_configs, sums):
        with pytest.raises(ValueError, match='nothing'):
            module.get_config('nothing')


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('policy.prompts', 0, 'policy.prompts=0: use at least 1'),
        ('policy.entropy', -1.0, 'policy.entropy=-1.0: use 0 or more'),
        ('policy.kl_target', 0.0, 'policy.kl_target=0.0: use a positive'),
        ('policy.overlong_buffer', 17, 'more than policy.max_tokens=16'),
        ('train.batch_size', 100, 'does not divide .* = 256 replies'),
        ('policy.epochs', 3, 'train.num_steps=10 is no multiple of the 3 updates'),
    ],
)
def test_what_all_have_in_common(field, value, told):
    config = rl()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=told):
        policy.check_config(config)


def test_kl_is_in_the_reward_or_in_the_loss():
    config = rl()
    config.policy.update(kl_reward=0.1, kl_loss=0.1)
    with pytest.raises(UserError, match='count the KL twice: set one of them to 0'):
        policy.check_config(config)


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('grpo.advantage', 'gae', 'grpo.advantage=gae: use one of grpo, dr_grpo'),
        ('grpo.objective', 'ppo', 'grpo.objective=ppo: use one of clipped'),
        ('grpo.normaliser', 'none', 'grpo.normaliser=none: use one of sequence'),
        ('grpo.resampling', -1, 'grpo.resampling=-1'),
        ('policy.replies', 1, 'policy.replies=1: .*within a group'),
    ],
)
def test_of_grpo(field, value, told):
    config = rl()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=told):
        grpo.check_config(config)


def test_reinforce_makes_one_update_a_rollout():
    config = rl()
    config.grpo.objective = 'reinforce'
    grpo.check_config(config)
    config.train.batch_size = 128
    with pytest.raises(UserError, match='one update a rollout: .* = 256'):
        grpo.check_config(config)


@pytest.mark.parametrize(
    ('field', 'value', 'told'),
    [
        ('ppo.critic', 'twin', 'ppo.critic=twin: use head or network'),
        ('ppo.lam', 1.5, 'ppo.lam=1.5: use a number from 0 to 1'),
        ('ppo.clip_low', 0.0, 'ppo.clip_low=0.0: use a positive'),
        ('ppo.warm_up', -1, 'ppo.warm_up=-1: use 0 or more'),
        ('ppo.ptx', -0.1, 'ppo.ptx=-0.1: use 0 or more'),
    ],
)
def test_of_ppo(field, value, told):
    config = rl('ppo')
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=told):
        ppo.check_config(config)
