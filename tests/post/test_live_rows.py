"""Updates of PPO and GRPO with few live rows: what changes, and how strongly."""

from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

from configs import common
from gptjax.post import policy_gradient
from gptjax.post.experience import Algorithm
from gptjax.post.objectives import advantages, policy_losses, reply_tokens
from gptjax.train.state import TrainState
from tests import helpers
from tests.post import starts
from tests.post.test_policy_gradient import lines, train

# ---- which updates are made

ROWS = dict(
    inputs=np.zeros((4, 2)),
    weights=np.float32([[0, 1], [0, 1], [0, 1], [0, 0]]),  # row 3 fills the rollout
    advantages=np.float32([[0, 0], [0, 1], [0, 0], [0, 0]]),
)


def updates_of(advantage, algorithm, epochs=2, **policy):
    """(rows of each update that is made, the last step, numbers of text arrays).

    Args:
        advantage: of row 1; the others have 0.
    """
    config = common.base()
    config.policy = common.policy_section()
    config.policy.update(policy, epochs=epochs)
    config.train.batch_size = 1
    made, numbers = [], []

    def step(state, arrays):
        made.append(float(arrays['row'][0]))
        return state._replace(step=state.step + 1), dict(loss=np.float32(0))

    def text(number, arrays):
        numbers.append(number)
        return {}

    if algorithm.extra_arrays:
        algorithm = algorithm._replace(extra_arrays=text)
    with mock.patch.object(policy_gradient, 'put_on_mesh', lambda arrays, mesh: arrays):
        state, metrics = policy_gradient.update_on_rollout(
            config,
            step,
            TrainState(np.int32(10), {}, ()),
            dict(ROWS, row=np.arange(4), advantages=advantage * ROWS['advantages']),
            (),
            10,
            algorithm,
            None,
        )
    assert len(metrics) == len(made)
    return sorted(made), int(state.step), numbers


@pytest.mark.parametrize(
    ('policy', 'algorithm', 'live'),
    [
        ({}, {}, []),
        ({'kl_loss': 0.1}, {}, [0, 0, 1, 1, 2, 2]),
        ({'entropy': 0.1}, {}, [0, 0, 1, 1, 2, 2]),
        ({'kl_reward': 0.1}, {}, []),  # it is part of the advantages
        ({}, {'has_critic': True}, [0, 0, 1, 1, 2, 2]),
        ({}, {'extra_arrays': True}, [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
@pytest.mark.parametrize('advantage', [0, 2])
def test_updates_without_a_live_row_are_left_out(policy, algorithm, live, advantage):
    algorithm = Algorithm(None, None, None, (), **algorithm)
    made, step, numbers = updates_of(advantage, algorithm, **policy)
    # Only row 1 has an advantage; the others of its rollout have none to learn from.
    assert made == (live or [1, 1] if advantage else live)
    assert step == 10 + 2 * 4  # the number of every update, made or not
    assert numbers == (list(range(10, 18)) if algorithm.extra_arrays else [])


def test_advantages_of_equal_scores_are_0_and_not_their_rounding():
    scores_NG = np.float32([[0.7] * 7, [0.1] * 7])
    for compute in (advantages.dr_grpo, advantages.rloo, advantages.grpo):
        assert not np.any(compute(scores_NG))
    assert not np.any(advantages.reinforce(np.float32([0.7] * 7)))
    mask_BT = np.array([[0, 1, 1], [1, 1, 1], [1, 1, 0]])
    assert not np.any(advantages.whiten(np.full((3, 3), np.float32(0.7)), mask_BT))


# ---- how strong an update is


@pytest.mark.parametrize(
    ('normalise', 'full', 'present'),
    [
        # Two replies of 1 and 3 tokens with the advantages 1 and -2 at a ratio of 1.
        (reply_tokens.token_weights, (-1 + 3 * 2) / 8, (-1 + 3 * 2) / 4),
        (reply_tokens.sequence_weights, (-1 + 2) / 4, (-1 + 2) / 2),
        (
            partial(reply_tokens.constant_weights, length=4),
            *((-1 + 3 * 2) / 4 / 4, (-1 + 3 * 2) / 4 / 2),
        ),
    ],
)
def test_a_partly_filled_update_is_the_mean_over_its_live_rows(
    normalise, full, present
):
    mask_BT = np.float32([[0, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
    logprobs_BT = np.full((4, 3), np.float32(-1))
    advantages_BT = np.float32([[1], [-2], [0], [0]]) * mask_BT

    def loss(mask_BT, rows=slice(None)):
        loss_BT, metrics = policy_losses.clipped(
            *(logprobs_BT[rows], logprobs_BT[rows], advantages_BT[rows], mask_BT[rows])
        )
        total, metrics = reply_tokens.sum_losses(
            loss_BT, metrics, mask_BT[rows], *normalise(mask_BT[rows])
        )
        means = reply_tokens.metrics_per_token(metrics, ['advantage', 'ratio'])
        return float(total / metrics['tokens']), means

    # Two groups of equal scores: with weight they count, as fillers they do not.
    value, metrics = loss(mask_BT)
    assert value == pytest.approx(full)
    assert metrics['advantage'] == pytest.approx((1 - 6) / 8)
    filled_BT = mask_BT * np.float32([[1], [1], [0], [0]])
    for value, metrics in (loss(filled_BT), loss(mask_BT, slice(2))):
        assert value == pytest.approx(present)
        assert metrics['advantage'] == pytest.approx((1 - 6) / 4)
        assert metrics['ratio'] == 1


# ---- the stage


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('live')
    starts.write_start(folder)
    return folder


def states_of(folder, name, section, **policy):
    """The states around the second rollout, whose advantages are 0, and its records."""
    seen = []

    def change(config):
        config.optim.update(weight_decay=0.1, ema=0.5)
        config.train.update(batch_size=8, num_steps=4, eval_every=4)

    def collect(*args):
        batch, *rest = COLLECT(*args)
        return dict(batch, advantages=batch['advantages'] * (not seen)), *rest

    def update(config, step, state, *rest):
        before = jax.device_get(state)
        state, steps = UPDATE(config, step, state, *rest)
        seen.append((before, jax.device_get(state)))
        return state, steps

    with (
        mock.patch.object(policy_gradient, 'collect_experience', collect),
        mock.patch.object(policy_gradient, 'update_on_rollout', update),
    ):
        summary, workdir = train(folder, name, section, change, **policy)
    before, after = seen[1]
    assert (before.step, after.step) == (2, 4)
    return SimpleNamespace(
        before=before, after=after, summary=summary, records=lines(workdir)
    )


COLLECT = policy_gradient.collect_experience
UPDATE = policy_gradient.update_on_rollout


@pytest.mark.slow
def test_a_rollout_without_live_rows_changes_nothing(folder):
    run = states_of(folder, 'nothing', 'grpo')
    helpers.assert_trees_close(run.before.params, run.after.params)
    helpers.assert_trees_close(run.before.opt_state, run.after.opt_state)
    assert run.summary['empty_rollouts'] == 1 and run.summary['skipped'] == 0
    assert 'ratio' in run.records[0] and 'ratio' not in run.records[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('section', 'policy'),
    [('grpo', dict(kl_loss=0.1)), ('grpo', dict(entropy=0.1)), ('ppo', {})],
)
def test_the_other_terms_of_the_loss_remain(folder, section, policy):
    run = states_of(folder, f'{section}{policy}', section, **policy)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), run.before.params, run.after.params
    )
    assert min(jax.tree.leaves(moved)) > 0
    assert run.summary['empty_rollouts'] == 0
    assert run.records[1]['advantage'] == 0 and run.records[1]['grad_norm'] > 0
