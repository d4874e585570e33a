"""Configs of PPO and GRPO: the experiments are accepted, bad fields are refused."""

import pytest

from configs import common, sums
from configs import grpo as grpo_configs
from configs import ppo as ppo_configs
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.post import grpo, policy_gradient, ppo
from gptjax.train import config_checks
from tests.post import starts


@pytest.mark.parametrize(
    ('stage', 'config'),
    [
        *((grpo, grpo_configs.get_config(name)) for name in grpo_configs.VARIANTS),
        (grpo, grpo_configs.get_config('')),
        (ppo, ppo_configs.get_config('')),
        (ppo, ppo_configs.get_config('reward=runs/reward')),
    ],
)
def test_experiments_are_accepted(stage, config):
    stage.check_config(config)
    policy_gradient.check_policy(config)


def test_variants_that_are_not_there():
    for module in (grpo_configs, ppo_configs, sums):
        with pytest.raises(ValueError, match='nothing'):
            module.get_config('nothing')


@pytest.mark.parametrize(
    ('section', 'changes', 'message'),
    [
        ('policy', {'policy.kl_horizon': 9}, 'kl_horizon=9 does nothing where .*=0'),
        ('policy', {'train.profile_step': 3}, '=3 does nothing in ppo and grpo'),
        ('policy', {'policy.overlong_buffer': 17}, 'more than policy.max_tokens=16'),
        ('policy', {'train.batch_size': 100}, 'does not divide .* = 256 replies'),
        (
            'policy',
            {'policy.epochs': 3},
            'train.num_steps=10 is not a multiple of the 3 updates',
        ),
        (
            'policy',
            {'policy.kl_reward': 0.1, 'policy.kl_loss': 0.1},
            'count the KL twice: set one of them to 0',
        ),
        ('grpo', {'policy.replies': 1}, 'policy.replies=1: .*compared with each other'),
        (
            'grpo',
            {'grpo.objective': 'reinforce', 'grpo.clip_high': 0.28},
            'clip_high=0.28 does nothing .*clip_high=0.2',
        ),
        (
            'grpo',
            {'grpo.objective': 'reinforce', 'train.batch_size': 128},
            'one update a rollout: .* = 256',
        ),
        ('ppo', {'ppo.critic_run': 'runs/reward'}, 'runs/reward does nothing where'),
    ],
)
def test_fields_that_do_not_fit_each_other_are_refused(section, changes, message):
    config = starts.bare_config('ppo' if section == 'ppo' else 'grpo')
    check = dict(
        policy=policy_gradient.check_policy,
        grpo=grpo.check_config,
        ppo=ppo.check_config,
    )[section]
    check(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        check(config)


def test_reinforce_with_one_update_a_rollout_is_accepted():
    config = starts.bare_config()
    config.grpo.objective = 'reinforce'
    grpo.check_config(config)


def test_dropout_given_as_a_flag_is_refused_and_inherited_dropout_is_not(tmp_path):
    config = starts.bare_config()
    config.start = common.start_section(str(tmp_path))
    config.model.residual_dropout = 0.1
    run_dir.write_config(config, tmp_path)
    config_checks.check_dropout(config)
    config.model.residual_dropout = 0.0
    config_checks.check_dropout(config)
    config.model.attention_dropout = 0.2
    with pytest.raises(UserError, match='model.attention_dropout=0.2 does nothing'):
        config_checks.check_dropout(config)
