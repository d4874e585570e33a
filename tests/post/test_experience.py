"""Experience from given replies and scores, without an engine."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from configs import common
from gptjax.infer.request import Reply, Token
from gptjax.post import experience, grpo, policy_gradient
from gptjax.post.experience import Algorithm, Environment
from gptjax.post.objectives.score_shaping import RunningMoments
from gptjax.post.problems.problem_sources import Problem
from gptjax.post.problems.verifiable_tasks import Task
from gptjax.post.rollout import PromptFormat
from gptjax.train.load_model import Trained

END = 5
ROLES = ('<|system|>', '<|user|>', '<|end|>', '<|assistant|>')
TOKENIZER = SimpleNamespace(
    pad_id=0,
    bos_id=1,
    eos_id=2,
    start_ids=[1],
    chat_template=None,
    specials={name: number for number, name in enumerate(ROLES, 3)},
    encode_batch=lambda texts: [[9] * len(text) for text in texts],
)
PROMPT_FORMAT = PromptFormat(
    TOKENIZER, 'turns', context=16, max_tokens=4, temperature=1.0
)
TASK = Task(
    train=lambda n: Problem(f'p{n}', (dict(role='user', content='?' * (n % 3 + 1)),)),
    demonstrations=None,
    validation=None,
    held_out=None,
    score=None,
)


def config(**policy):
    config = common.base()
    config.policy = common.policy_section()
    config.policy.update(dict(prompts=2, replies=2, max_tokens=4))
    config.policy.update(policy)
    return config


def reply(length, cut=False):
    tokens = tuple(Token(9, -0.5) for _ in range(length - (not cut)))
    ending = None if cut else Token(END, -0.5)
    return Reply('x' * length, tokens, None, 'length' if cut else 'stop', None, ending)


def complete(prompts, parameters):
    return [reply(1 + row % 3, cut=row % 3 == 2) for row in range(len(prompts))]


def scoring(scores):
    """A reward function that returns the given scores of each rollout."""
    given = iter(scores)
    return lambda problems, replies: np.array(next(given), np.float32)


def groups(scores, resampling, **policy):
    return experience.draw_groups(
        config(**policy),
        Environment(PROMPT_FORMAT, TASK, scoring(scores)),
        complete,
        resampling,
        rollout_number=3,
    )


# ---- dynamic sampling


def test_without_resampling_a_rollout_is_what_was_drawn():
    rollout, scores_B, metrics = groups([[0, 0, 1, 0]], 0)
    assert [problem.id for problem in rollout.problems] == ['p6', 'p6', 'p7', 'p7']
    assert scores_B.tolist() == [0, 0, 1, 0]
    assert metrics == dict(reward=0.25, mixed_groups=0.5, groups_drawn=2.0)
    assert (rollout.batch['weights'].sum(axis=1) > 0).all()


def test_groups_of_equal_scores_are_drawn_again():
    # 0.7 and 0.70001 count as equal: their difference is noise.
    rollout, scores_B, metrics = groups(
        [[0.7, 0.70001, 1, 0], [1, 1, 0, 0], [0, 0.5, 1, 0.5]], 3
    )
    assert [problem.id for problem in rollout.problems] == ['p25', 'p25', 'p28', 'p28']
    assert scores_B.tolist() == [1, 0, 0, 0.5]
    assert metrics['reward'] == pytest.approx((0.6 + 0.5 + 0.5) / 3, abs=1e-5)
    assert (metrics['mixed_groups'], metrics['groups_drawn']) == (0.5, 6)
    assert (rollout.batch['weights'].sum(axis=1) > 0).all()


def test_groups_of_equal_scores_fill_the_rollout_with_weight_0():
    rollout, scores_B, _ = groups([[0, 0, 1, 1], [0, 1, 1, 1]], 1)
    assert scores_B.tolist() == [0, 1, 0, 0]
    tokens = rollout.batch['weights'].sum(axis=1)
    assert (tokens[:2] > 0).all() and tokens[2:].tolist() == [0, 0]
    assert rollout.batch['inputs'].shape == (4, 16)


def test_every_rollout_and_every_further_draw_has_problems_of_its_own():
    seen = []
    task = TASK._replace(train=lambda n: seen.append(n) or TASK.train(n))
    for number in range(3):
        experience.draw_groups(
            config(),
            Environment(PROMPT_FORMAT, task, scoring([[0] * 4] * 3)),
            complete,
            2,
            number,
        )
    assert seen == list(range(18))


# ---- scores and advantages


def test_scores_are_scaled_and_then_penalised_for_length():
    rollout, raw_B, _ = groups([[8, 8, 8, -8]], 0)
    assert rollout.truncated_B.tolist() == [False, False, True, False]
    assert rollout.lengths_B.tolist() == [1, 2, 3, 1]
    policy = config(
        reward_scale=2.0, reward_clip=3.0, overlong_buffer=2, missing_eos_penalty=0.25
    ).policy
    scores_B = experience.shape_scores(policy, raw_B, rollout, RunningMoments())
    # 8 / 2 is clipped to 3; the last 2 of 4 tokens are penalised.
    np.testing.assert_allclose(scores_B, [3, 3, 3 - 0.5 - 0.25, -3])
    policy = config(reward_running_scale=True).policy
    seen = RunningMoments().after(raw_B)
    scores_B = experience.shape_scores(policy, raw_B, rollout, seen)
    # By default a truncated reply loses 1.
    expected_B = raw_B / raw_B.std() - [0, 0, 1, 0]
    np.testing.assert_allclose(scores_B, expected_B, rtol=1e-6)


# ---- all steps together


def collected(*scores, warm_up=0, **policy):
    made = config(**policy)
    adaptive = experience.new_adaptive_state(made.policy)

    def compute_advantages(batch, scores_B, coefficient):
        coefficients.append(coefficient)
        return dict(batch, advantages=scores_B[:, None] * batch['weights']), {}

    coefficients = []
    algorithm = Algorithm(
        None, compute_advantages, None, (), None, len(scores) - 1, warm_up
    )

    def score(batch):
        old = np.where(batch['weights'] > 0, np.float32(-0.5), np.float32(-9))
        return dict(old=old, reference=old - 2 * batch['weights'])

    batch, metrics, adaptive = experience.collect_experience(
        made,
        Environment(PROMPT_FORMAT, TASK, scoring(scores)),
        complete,
        score,
        algorithm,
        adaptive,
        0,
    )
    return SimpleNamespace(
        batch=batch, metrics=metrics, adaptive=adaptive, coefficients=coefficients
    )


def test_an_experience_has_the_metrics_of_the_rollout():
    found = collected([1, 0, 0, 1], kl_reward=0.25)
    assert found.coefficients == [0.25]
    assert found.metrics['reward'] == 0.5
    assert found.metrics['response_length'] == (1 + 2 + 3 + 1) / 4
    assert found.metrics['truncation_rate'] == 0.25
    assert found.metrics['kl'] == pytest.approx(2 * 7 / 4)  # summed over a reply
    assert found.metrics['sampler_gap'] == 0
    assert found.adaptive.scores.count == 4
    assert collected([1, 0, 0, 1], kl_loss=0.25).coefficients == [0.0]


def test_the_coefficient_follows_the_kl_once_the_policy_moves():
    adaptive = dict(kl_reward=0.5, kl_target=1.0, kl_horizon=100)
    found = collected([1, 0, 0, 1], **adaptive)
    # The KL is 3.5 times the target: the error is clipped to 0.2.
    assert found.adaptive.kl.coefficient == pytest.approx(0.5 * (1 + 0.2 * 4 / 100))
    assert found.metrics['kl_coefficient'] == 0.5
    warming_up = collected([1, 0, 0, 1], warm_up=1, **adaptive)
    assert warming_up.adaptive.kl.coefficient == 0.5


def test_groups_that_fill_the_rollout_do_not_count():
    # Only one group of two draws is mixed; its replies have 1 and 2 tokens.
    found = collected(
        [1, 0, 5, 5], [5, 5, 5, 5], kl_reward=0.5, kl_target=1.0, kl_horizon=100
    )
    assert found.metrics['score'] == 0.5
    assert found.metrics['response_length'] == 1.5
    assert found.metrics['truncation_rate'] == 0
    assert (found.adaptive.scores.count, found.adaptive.scores.mean) == (2, 0.5)
    assert found.adaptive.kl.coefficient == pytest.approx(0.5 * (1 + 0.2 * 2 / 100))
    empty = collected([5, 5, 5, 5], [5, 5, 5, 5], kl_reward=0.5, kl_horizon=100)
    assert not empty.batch['advantages'].any()
    # The groups have no weight. One of the four replies is truncated and loses 1.
    assert empty.metrics['score'] == 4.75
    assert empty.adaptive == ((0.5, 6.0, 100), (0, 0, 0))


def test_truncated_replies_can_be_left_out_of_the_loss():
    kept, masked = (collected([1, 0, 0, 1], mask_truncated=m) for m in (False, True))
    assert masked.batch['weights'].sum(axis=1).tolist() == [1, 2, 0, 1]
    assert masked.batch['weights'].dtype == kept.batch['weights'].dtype
    np.testing.assert_array_equal(
        masked.batch['advantages'], kept.batch['advantages'] * masked.batch['weights']
    )
    # All replies count in the metrics and in the moments of scores.
    drop = lambda metrics: {**metrics, 'rollout_seconds': 0}
    assert drop(masked.metrics) == drop(kept.metrics)
    assert masked.adaptive == kept.adaptive


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'missing_eos_penalty': 0.0}, 'keep their reward, without a penalty, and tra'),
        ({}, 'are penalised and train .*eos_penalty=1.0, .*=False'),
        ({'mask_truncated': True}, 'are left out of the loss .*mask_truncated=True'),
    ],
)
def test_the_screen_says_how_truncated_replies_count(changes, words):
    section = config(**changes).policy
    assert re.search(words, policy_gradient.describe_truncation(section))


@pytest.mark.parametrize('advantage', ['grpo', 'dr_grpo'])
def test_groups_whose_scores_differ_only_by_their_kl_have_no_advantage_in_grpo(
    advantage,
):
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
    if advantage == 'grpo':  # a division by the noise would give -1 and 1
        np.testing.assert_allclose(found, [0, 0, 1, -1], atol=1e-6)
    else:
        np.testing.assert_allclose(found, [-0.001, 0.001, 0.499, -0.499], atol=1e-6)
