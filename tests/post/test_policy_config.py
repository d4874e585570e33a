"""Configs of reinforcement learning that cannot be meant are refused by name."""

import pytest

from configs import common, sums
from configs import grpo as grpo_configs
from configs import ppo as ppo_configs
from gptjax.core import run_dir
from gptjax.core.console import UserError
from gptjax.post import policy_gradient
from gptjax.train import config_checks
from tests.post import starts


def test_variants_that_are_not_there():
    for module in (grpo_configs, ppo_configs, sums):
        with pytest.raises(ValueError, match='nothing'):
            module.get_config('nothing')


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        (
            'policy.kl_horizon',
            9,
            'kl_horizon=9 does nothing where .* policy.kl_horizon=0',
        ),
        ('train.profile_step', 3, 'train.profile_step=3 does nothing in ppo and grpo'),
        ('policy.overlong_buffer', 17, 'more than policy.max_tokens=16'),
        ('train.batch_size', 100, 'does not divide .* = 256 replies'),
        ('policy.epochs', 3, 'train.num_steps=10 is not a multiple of the 3 updates'),
    ],
)
def test_what_all_have_in_common(field, value, message):
    config = starts.bare_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        policy_gradient.check_policy(config)


def test_kl_is_in_the_reward_or_in_the_loss():
    config = starts.bare_config()
    config.policy.update(kl_reward=0.1, kl_loss=0.1)
    with pytest.raises(UserError, match='count the KL twice: set one of them to 0'):
        policy_gradient.check_policy(config)


def test_dropout_of_a_flag_is_refused_and_that_of_the_start_is_not(tmp_path):
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
