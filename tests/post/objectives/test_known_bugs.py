"""Known bugs of RL on language models: each bug, put in on purpose, fails a check.

Each test has a `check` of a property. Our function passes it; wrong functions fail it.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax.infer.request import Reply, Token
from gptjax.post.objectives import (
    advantages,
    policy_losses,
    reply_tokens,
    score_shaping,
)
from gptjax.post.rollout import PromptFormat, build_rollout
from gptjax.train.state import TrainState
from gptjax.train.step import make_train_step
from tests.post import tiny

TREE = tiny.make_world()
POLICY_SV = TREE.reference_SV[::-1]
WEIGHTS = (
    reply_tokens.token_weights,
    reply_tokens.sequence_weights,
    partial(reply_tokens.constant_weights, length=4),
)


# ---- integer rewards: 0.7 becomes 0


def test_scores_stay_fractions():
    def check(terminal_rewards):
        mask_BT = np.array([[0, 1, 1, 0]], np.int32)  # integers, as tokens are
        rewards_BT = terminal_rewards(np.float32([0.7]), mask_BT)
        np.testing.assert_array_equal(rewards_BT, np.float32([[0, 0, 0.7, 0]]))

    def into_zeros_like_the_mask(scores_B, mask_BT):
        rewards_BT = np.zeros_like(mask_BT)
        rewards_BT[:, 2] = scores_B
        return rewards_BT

    check(advantages.terminal_rewards)
    tiny.refuses(check, into_zeros_like_the_mask)


def test_integer_scores_have_fractional_advantages():
    def check(advantage):
        advantages_NG = np.asarray(advantage(jnp.array([[1, 0, 0, 0]])))
        assert advantages_NG.dtype == np.float32
        assert advantages_NG[0, 0] == pytest.approx(0.75)

    check(advantages.dr_grpo)
    check(advantages.reinforce)
    tiny.refuses(check, lambda s: s - jnp.mean(s, -1, keepdims=True).astype(s.dtype))


# ---- the mask contains the end but not the padding, though both have the same id


def test_the_mask_has_the_end_and_no_padding():
    lengths_B = TREE.mask_BT.sum(-1)
    rows, prompt = len(lengths_B), 5
    # The mask must not have tokens of the prompt before the reply.
    before = ((0, 0), (prompt - 1, 0))
    targets_BT = np.pad(TREE.targets_BT, before, constant_values=1)
    token_BT = np.pad(tiny.logprobs(TREE, POLICY_SV), before, constant_values=-0.3)
    place_T = np.arange(targets_BT.shape[1])

    def check(mask):
        """The probabilities of all replies sum to 1."""
        p_B = jnp.exp(reply_tokens.reply_sums(token_BT, mask(targets_BT)))
        assert float(jnp.sum(p_B)) == pytest.approx(1.0, abs=1e-5)

    def ours(targets_BT):
        T = targets_BT.shape[1]
        prompt_format = PromptFormat(SimpleNamespace(pad_id=tiny.END), 'turns', T, 3, 1)
        replies = []
        for targets_T, length in zip(targets_BT, lengths_B, strict=True):
            tokens = [Token(int(id), 0.0) for id in targets_T[prompt - 1 :][:length]]
            ending = tokens.pop() if tokens[-1].id == tiny.END else None
            replies.append(Reply('', tuple(tokens), None, 'stop', None, ending))
        prompts = [[1] * prompt] * rows
        rollout = build_rollout(prompt_format, [None] * rows, prompts, replies)
        np.testing.assert_array_equal(rollout.batch['targets'], targets_BT)
        return rollout.batch['weights'] != 0

    check(ours)
    tiny.refuses(
        check,
        lambda targets_BT: (targets_BT != tiny.END) & (place_T >= prompt - 1),
        lambda targets_BT: ours(targets_BT) & (targets_BT != tiny.END),
        lambda targets_BT: np.broadcast_to(place_T >= prompt - 1, targets_BT.shape),
        lambda targets_BT: np.roll(ours(targets_BT), 1, axis=1),  # off by one
    )


def test_without_its_end_in_the_mask_the_optimum_is_another():
    def check(mask_BT):
        loss = partial(tiny.reinforce, TREE, mask_BT=mask_BT)
        tiny.assert_optimal(TREE, tiny.descend(loss, TREE.reference_SV))

    check(TREE.mask_BT)
    tiny.refuses(check, TREE.mask_BT & (TREE.targets_BT != tiny.END))


# ---- padding changes nothing


def textbook_gae(rewards_BT, values_BT, mask_BT, lam=0.95):
    """GAE over all tokens, with the mask applied afterwards."""
    next_BT = jnp.pad(values_BT[:, 1:], ((0, 0), (0, 1)))
    deltas_BT = rewards_BT + next_BT - values_BT
    place_T = jnp.arange(rewards_BT.shape[1])
    apart_TT = place_T[:, None] - place_T[None]
    decay_TT = jnp.where(apart_TT >= 0, lam ** jnp.abs(apart_TT), 0.0)
    kept_BT = jnp.where(mask_BT, deltas_BT @ decay_TT, 0.0)
    return kept_BT, jnp.where(mask_BT, kept_BT + values_BT, 0.0)


def test_the_value_of_padding_does_not_leak():
    scores_BT = advantages.terminal_rewards(TREE.scores_B, TREE.mask_BT)
    values_S = tiny.values(TREE, POLICY_SV, scores_BT)
    values_BT = np.where(TREE.mask_BT, values_S[TREE.prefixes_BT], 3.0)
    exact_SV = jax.jit(jax.grad(tiny.objective, argnums=1))(TREE, POLICY_SV)

    def check(functions):
        """With exact values, the gradient equals that of the expected score."""
        terminal_rewards, gae = functions
        rewards_BT = terminal_rewards(TREE.scores_B, TREE.mask_BT)
        advantages_BT, _ = gae(rewards_BT, values_BT, TREE.mask_BT)
        loss = lambda now, old: policy_losses.clipped(
            now, old, advantages_BT, TREE.mask_BT
        )
        ascent_SV = tiny.expected_gradient(
            TREE, POLICY_SV, lambda now, old: loss(now, old)[0]
        )
        np.testing.assert_allclose(ascent_SV, exact_SV, atol=2e-6)

    def after_the_end(scores_B, mask_BT):
        rewards_BT = np.zeros(mask_BT.shape, np.float32)
        place_B = np.minimum(mask_BT.sum(-1), mask_BT.shape[1] - 1)
        rewards_BT[np.arange(len(scores_B)), place_B] = scores_B
        return rewards_BT

    check((advantages.terminal_rewards, advantages.gae))
    tiny.refuses(
        check,
        (advantages.terminal_rewards, textbook_gae),
        (after_the_end, textbook_gae),
        (after_the_end, advantages.gae),
    )


def random_rows():
    """A mask and four random arrays; the replies have different lengths."""
    rng = np.random.default_rng(0)
    B, T = 6, 7
    first_B, end_B = rng.integers(0, 3, B), rng.integers(3, T + 1, B)
    place_T = np.arange(T)
    mask_BT = (place_T >= first_B[:, None]) & (place_T < end_B[:, None])
    return mask_BT, *rng.normal(size=(4, B, T)).astype(np.float32)


def gae_arrays(gae, mask_BT, rewards_BT, values_BT, *_):
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT)
    return dict(advantages=advantages_BT, returns=returns_BT)


def whitened_arrays(whiten, mask_BT, x_BT, *_):
    return dict(both=whiten(x_BT, mask_BT), scaled=whiten(x_BT, mask_BT, False))


def whiten_with_padding(x_BT, mask_BT, shift_mean=True):
    white_BT = (x_BT - x_BT.mean()) / x_BT.std()
    return jnp.where(mask_BT, white_BT if shift_mean else white_BT + x_BT.mean(), 0)


def losses_and_metrics(sum_losses, mask_BT, now_BT, old_BT, values_BT, returns_BT):
    explained = policy_losses.explained_variance(values_BT, returns_BT, mask_BT)
    result = dict(explained_variance=explained)
    loss_BT, metrics_BT = policy_losses.clipped(now_BT, old_BT, values_BT, mask_BT)
    value_BT, value_metrics_BT = policy_losses.value_loss(
        values_BT, old_BT, returns_BT, mask_BT, 0.1
    )
    loss_BT, metrics_BT = loss_BT + value_BT, metrics_BT | value_metrics_BT
    for number, compute_weights in enumerate(WEIGHTS):
        total, metrics = sum_losses(
            loss_BT, metrics_BT, mask_BT, *compute_weights(mask_BT)
        )
        tokens = metrics.pop('tokens')
        metrics = {name: value / tokens for name, value in metrics.items()}
        metrics = reply_tokens.metrics_per_token(metrics, metrics_BT)
        result[f'loss {number}'] = total / tokens
        result |= {f'{name} {number}': metrics[name] for name in metrics_BT}
    return result


def mean_with_padding(loss_BT, metrics_BT, mask_BT, weights_BT, counts_B):
    metrics = {name: jnp.mean(value) for name, value in metrics_BT.items()}
    sums = dict(reply_tokens=jnp.ones(()), tokens=jnp.ones(()))
    return jnp.mean(loss_BT), metrics | sums


@pytest.mark.parametrize(
    'compute, ours, wrong',
    (
        (gae_arrays, advantages.gae, textbook_gae),
        (whitened_arrays, advantages.whiten, whiten_with_padding),
        (losses_and_metrics, reply_tokens.sum_losses, mean_with_padding),
    ),
)
def test_padding_changes_nothing(compute, ours, wrong):
    mask_BT, *arrays = random_rows()
    rows, places = mask_BT.shape
    pad = lambda x, fill: np.pad(x, ((0, 2), (0, 5)), constant_values=fill)

    def check(function):
        jitted = jax.jit(partial(compute, function))
        short = jitted(mask_BT, *arrays)
        # Further rows and columns, whose numbers would change a wrong result.
        long = jitted(pad(mask_BT, False), *(pad(x, 9.0) for x in arrays))
        for name, array in short.items():
            other = np.asarray(long[name])
            assert np.all(np.isfinite(other)), name
            if array.ndim:
                assert not np.any(other[rows:]) and not np.any(other[:, places:]), name
                other = other[:rows, :places]
                array, other = (np.where(mask_BT, x, 0) for x in (array, other))
            np.testing.assert_allclose(other, array, atol=2e-6, err_msg=name)

    check(ours)
    tiny.refuses(check, wrong)


# ---- one normaliser for the whole batch, whatever the micro-batches


def test_the_loss_is_normalised_once():
    mask_BT, now_BT, old_BT, advantages_BT, _ = random_rows()
    mask_BT[0] = False  # a padding row of the batch
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    optimizer = optax.sgd(1.0)

    def new_state():
        params = dict(table=jnp.asarray(now_BT))
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def make_steps(sum_losses):
        """The training steps with one batch and with three micro-batches."""

        def loss_fn(params, batch, key):
            loss_BT, metrics = policy_losses.reinforce(
                params['table'][batch['rows']],
                *(batch['old'], batch['advantages'], batch['mask']),
            )
            arrays = (batch['mask'], batch['weights'], batch['counts'])
            return sum_losses(loss_BT, metrics, *arrays)

        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one_device),
            new_state(),
        )
        return [make_train_step(loss_fn, optimizer, abstract, n) for n in (1, 3)]

    def check(weights, steps):
        """Both change the table equally."""
        weights_BT, counts_B = weights
        batch = dict(
            rows=np.arange(len(mask_BT)),
            old=old_BT,
            advantages=advantages_BT,
            mask=mask_BT,
            weights=weights_BT,
            counts=counts_B,
        )
        whole, parts = (step(new_state(), batch)[0].params['table'] for step in steps)
        assert np.any(np.asarray(whole) != now_BT)
        np.testing.assert_allclose(whole, parts, atol=1e-6)

    def mean_of_each_part(*arrays):
        total, metrics = reply_tokens.sum_losses(*arrays)
        return total / metrics['tokens'], metrics | dict(tokens=jnp.ones(()))

    ours, wrong = map(make_steps, (reply_tokens.sum_losses, mean_of_each_part))
    for compute_weights in WEIGHTS:
        weights = compute_weights(mask_BT)
        check(weights, ours)
        tiny.refuses(partial(check, weights), wrong)


# ---- advantages within a group


def test_advantages_add_up_to_0_in_a_group():
    rng = np.random.default_rng(0)
    scores_NG = rng.normal(size=(5, 4)) + 10 * np.arange(5)[:, None]

    def check(advantage):
        sums_N = np.sum(np.asarray(advantage(scores_NG)), axis=-1)
        # Scores are up to 40.
        np.testing.assert_allclose(sums_N, np.zeros(5), atol=2e-5)

    for ours in (advantages.grpo, advantages.dr_grpo, advantages.rloo):
        check(ours)
    tiny.refuses(
        check,
        lambda s: (s - s.mean()) / s.std(),  # over the batch
        lambda s: (s - s.mean(0)) / s.std(0),  # over the wrong axis
        lambda s: s.reshape(4, 5).T - s.reshape(4, 5).T.mean(1, keepdims=True) + 1e-3,
        # The sum of the others, divided by G and not by G - 1.
        lambda s: s - (s.sum(1, keepdims=True) - s) / s.shape[1],
    )


def test_near_equal_scores_give_no_advantage():
    summed = np.float32([0.1]) * 3 + np.float32([1e-7])
    scores_NG = np.float32([[0.3, summed[0], 0.3, 0.3], [7.7] * 4, [0.0] * 4])
    assert scores_NG[0, 0] != scores_NG[0, 1]

    def check(grpo):
        np.testing.assert_array_equal(grpo(scores_NG), np.zeros_like(scores_NG))

    def guarded_by_an_epsilon(scores_NG):
        mean_N1, std_N1 = (f(scores_NG, 1, keepdims=True) for f in (np.mean, np.std))
        return (scores_NG - mean_N1) / (std_N1 + 1e-8)

    check(advantages.grpo)
    tiny.refuses(check, guarded_by_an_epsilon)
    assert not np.any(advantages.informative(scores_NG))


# ---- the overlong penalty counts tokens


def test_overlong_replies_are_measured_in_tokens():
    texts = ['a b', 'internationalisation of', 'a b c d e f', 'i j k l m n o p q']
    tokens = [len(text.split()) for text in texts]  # one token per word
    mask_BT = np.arange(10) < np.array(tokens)[:, None]

    def check(penalty_B):
        # longest 8, buffer 4: the penalty grows from 4 to 8 tokens
        np.testing.assert_allclose(penalty_B, [0.0, 0.0, -0.5, -1.0])

    check(score_shaping.overlong_penalty(mask_BT, longest=8, buffer=4))
    in_characters_B = np.array([len(text) for text in texts])
    tiny.refuses(check, -np.clip((in_characters_B - 4) / 4, 0, 1))
