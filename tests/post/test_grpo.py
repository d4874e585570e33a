"""GRPO: its config, and its advantages where the KL is in the score."""

import numpy as np
import pytest

from configs import common
from configs import grpo as grpo_configs
from gptjax.core.console import UserError
from gptjax.post import grpo, policy_gradient
from gptjax.train.load_model import Trained
from tests.post import starts


@pytest.mark.parametrize('variant', [*grpo_configs.VARIANTS, ''])
def test_configs_of_grpo_are_fine(variant):
    config = grpo_configs.get_config(variant)
    grpo.check_config(config)
    policy_gradient.check_policy(config)


def test_a_group_is_more_than_one_reply():
    config = starts.bare_config()
    config.policy.replies = 1
    with pytest.raises(UserError, match='policy.replies=1: .*compared with each other'):
        grpo.check_config(config)


def test_reinforce_makes_one_update_a_rollout():
    config = starts.bare_config()
    config.grpo.objective = 'reinforce'
    grpo.check_config(config)
    config.grpo.clip_high = 0.28
    with pytest.raises(UserError, match='clip_high=0.28 does nothing .*clip_high=0.2'):
        grpo.check_config(config)
    config.grpo.clip_high = 0.2
    config.train.batch_size = 128
    with pytest.raises(UserError, match='one update a rollout: .* = 256'):
        grpo.check_config(config)


@pytest.mark.parametrize('advantage', ['grpo', 'dr_grpo'])
def test_scores_that_differ_by_their_kl_alone_have_no_advantage(advantage):
    config = common.base()
    config.policy, config.grpo = common.policy_section(), common.grpo_section()
    config.policy.replies, config.grpo.advantage = 2, advantage
    trained = Trained(None, None, None, 0)
    algorithm = grpo.make_algorithm(config, trained, None, None)
    mask_BT = np.ones((4, 1), np.float32)
    apart_BT = np.float32([[0.02], [0.0], [0.02], [0.0]])
    batch = dict(weights=mask_BT, old=apart_BT, reference=np.zeros_like(apart_BT))
    scores_B = np.float32([1, 1, 1, 0])
    batch, _ = algorithm.compute_advantages(batch, scores_B, 0.1)
    found = batch['advantages'][:, 0]
    if advantage == 'grpo':  # divided by the noise it would be -1 and 1
        np.testing.assert_allclose(found, [0, 0, 1, -1], atol=1e-6)
    else:
        np.testing.assert_allclose(found, [-0.001, 0.001, 0.499, -0.499], atol=1e-6)
