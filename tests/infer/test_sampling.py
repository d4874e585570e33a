"""Filters compared with rows computed by hand, samples with their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.infer.sampling import (
    History,
    Sampling,
    apply_penalties,
    argmax,
    draw_tokens,
    filter_logits,
)

# Unsorted and all different.
PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]
TEMPERATURE_HALF = [22.5 / 365, 250 / 365, 2.5 / 365, 90 / 365]  # squares

jit_filter = jax.jit(filter_logits)
jit_draw = jax.jit(draw_tokens)
jit_penalties = jax.jit(apply_penalties)


def filtered(logits=LOGITS, **sampling):
    """Probabilities after the filters, renormalised: (B, V)."""
    sampling = Sampling(**{name: np.asarray(x) for name, x in sampling.items()})
    return np.asarray(jax.nn.softmax(jit_filter(logits, sampling), axis=-1))


@pytest.mark.parametrize(
    'sampling, expected',
    [
        (dict(), [0.15, 0.5, 0.05, 0.3]),
        (dict(top_k=1), [0, 1, 0, 0]),
        (dict(top_k=2), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_k=9), [0.15, 0.5, 0.05, 0.3]),
        # The most probable tokens until their sum exceeds top_p, the last one included.
        (dict(top_p=0.45), [0, 1, 0, 0]),
        (dict(top_p=0.55), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=0.9), [3 / 19, 10 / 19, 0, 6 / 19]),
        (dict(top_p=1e-9), [0, 1, 0, 0]),
        # A share of the largest probability, 0.5: at least 0.1, then at least 0.25.
        (dict(min_p=0.2), [3 / 19, 10 / 19, 0, 6 / 19]),
        (dict(min_p=0.5), [0, 5 / 8, 0, 3 / 8]),
        (dict(min_p=1.0), [0, 1, 0, 0]),
        # Then 250/365 and 90/365 sum to more than 0.9.
        (dict(temperature=0.5), TEMPERATURE_HALF),
        (dict(temperature=0.5, top_p=0.9), [0, 250 / 340, 0, 90 / 340]),
        # Top-k keeps three. Two of them have 16/19 of these three, and 16/20 of all.
        (dict(top_k=3, top_p=0.82), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=0.82), [3 / 19, 10 / 19, 0, 6 / 19]),
        # The smallest temperatures do not overflow.
        *((dict(temperature=t), [0, 1, 0, 0]) for t in (1e-6, 1e-30, 1e-37)),
    ],
    ids=str,
)
def test_filters_by_hand(sampling, expected):
    sampling = {
        name: np.float32(x) if isinstance(x, float) else x
        for name, x in sampling.items()
    }
    np.testing.assert_allclose(filtered(**sampling)[0], expected, rtol=1e-5)


def test_equally_likely_tokens_stay_together():
    logits = jnp.asarray([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]])
    assert (filtered(logits, top_k=3) > 0).tolist() == [[1, 1, 1, 1, 1, 0]]
    assert (filtered(jnp.zeros((1, 8)), top_p=0.3) > 0).all()


@pytest.mark.parametrize('seed', range(4))
def test_filters_equal_a_sort(seed):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((4, 1000))).astype(np.float32)
    top_k = np.array([0, 1, 40, 999])
    top_p = np.array([0.9, 1.0, 0.5, 0.999], np.float32)
    kept = filtered(jnp.asarray(logits), top_k=top_k, top_p=top_p) > 0
    for row in range(4):
        order = np.argsort(-logits[row])[: top_k[row] or None]
        share = np.exp(logits[row][order].astype(np.float64))
        share /= share.sum()
        before = np.cumsum(share) - share
        expected = set(order[before < top_p[row]].tolist())
        assert set(np.flatnonzero(kept[row]).tolist()) == expected


def test_top_p_of_one_keeps_every_token():
    # Float32 sums of many small probabilities reach one before the last token.
    logits = 4 * jax.random.normal(jax.random.key(0), (8, 4096))
    assert np.isfinite(jit_filter(logits, Sampling(top_p=np.float32(1)))).all()


def test_each_row_has_its_own_parameters():
    rows = filtered(
        jnp.tile(LOGITS, (3, 1)),
        temperature=np.array([1.0, 1.0, 0.5]),
        top_k=np.array([2, 0, 0]),
        min_p=np.array([0.0, 1.0, 0.0]),
    )
    expected = [[0, 5 / 8, 0, 3 / 8], [0, 1, 0, 0], TEMPERATURE_HALF]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


# ---- samples


@pytest.mark.parametrize(
    'sampling, expected',
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (Sampling(top_k=2), [0, 5 / 8, 0, 3 / 8]),
    ],
    ids=str,
)
def test_draws_have_the_distribution(sampling, expected):
    count = 8192
    seeds = jnp.arange(count, dtype=jnp.uint32)
    logits = jnp.tile(LOGITS, (count, 1))
    tokens = jit_draw(logits, seeds, jnp.full(count, 7), sampling)
    shares = np.bincount(tokens, minlength=4) / count
    # Within four standard deviations, which are 0 for tokens that are filtered out.
    expected = np.asarray(expected)
    assert (np.abs(shares - expected) <= 4 * np.sqrt(expected / count)).all()


def test_draws_depend_on_seed_and_position_alone():
    logits = jnp.zeros((64, 1000))
    same, different = jnp.full(64, 5, jnp.uint32), jnp.arange(64)
    by_position = jit_draw(logits, same, different, Sampling())
    assert len(np.unique(by_position)) > 32
    again = jit_draw(logits, same, different, Sampling())
    np.testing.assert_array_equal(by_position, again)
    assert len(np.unique(jit_draw(logits, same, jnp.full(64, 3), Sampling()))) == 1


def test_a_draw_does_not_depend_on_the_other_rows():
    logits = jax.random.normal(jax.random.key(0), (6, 50))
    seeds, positions = jnp.arange(6, dtype=jnp.uint32), jnp.arange(6) + 3
    together = jit_draw(logits, seeds, positions, Sampling())
    alone = jit_draw(logits[2:3], seeds[2:3], positions[2:3], Sampling())
    assert alone[0] == together[2]
    reverse = jit_draw(logits[::-1], seeds[::-1], positions[::-1], Sampling())
    np.testing.assert_array_equal(reverse[::-1], together)


def test_temperature_zero_takes_the_most_likely_token_of_its_row():
    logits = jnp.tile(LOGITS, (64, 1))
    temperature = np.where(np.arange(64) % 2, 1.0, 0.0)
    seeds = jnp.arange(64, dtype=jnp.uint32)
    tokens = np.asarray(jit_draw(logits, seeds, seeds * 0, Sampling(temperature)))
    assert (tokens[::2] == 1).all()
    assert len(np.unique(tokens[1::2])) > 1


def test_argmax_is_the_first_largest_logit():
    rows = np.random.default_rng(0).integers(0, 5, (200, 37)).astype(np.float32)
    rows[0], rows[1, 3:] = -np.inf, -np.inf
    tokens = jax.jit(argmax)(rows)
    np.testing.assert_array_equal(tokens, rows.argmax(axis=-1))
    assert tokens.dtype == jnp.int32
    # Even NaN gives a valid token, as the embedding looks it up.
    assert 0 <= argmax(jnp.full((1, 37), np.nan))[0] < 37


# ---- penalties


def history(seen=(), counts=(0, 0, 0, 0), bias=(0, 0, 0, 0)):
    return History(
        np.isin(np.arange(4), seen)[None],
        np.array([counts], np.int32),
        np.array([bias], np.float32),
    )


@pytest.mark.parametrize(
    'sampling, past, expected',
    [
        (dict(), history(seen=[0], counts=(0, 1, 2, 0)), [2, -2, 1, -1]),
        # Tokens of prompt and reply: divided if positive, multiplied if negative.
        (
            dict(repetition_penalty=2.0),
            history(seen=[0, 3], counts=(0, 1, 0, 0)),
            [1, -4, 1, -2],
        ),
        # Tokens of the reply only: once, or times the count.
        (dict(presence_penalty=0.5), history([0], (0, 1, 3, 0)), [2, -2.5, 0.5, -1]),
        (dict(frequency_penalty=0.5), history([0], (0, 1, 3, 0)), [2, -2.5, -0.5, -1]),
        (dict(), history(bias=(0, 5, 0, -100)), [2, 3, 1, -101]),
    ],
    ids=str,
)
def test_penalties_by_hand(sampling, past, expected):
    logits = jnp.asarray([[2.0, -2.0, 1.0, -1.0]])
    penalised = jit_penalties(logits, Sampling(**sampling), past)
    np.testing.assert_array_equal(penalised[0], np.asarray(expected, np.float32))


def test_penalties_and_filters_change_no_other_row():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 4)), jnp.float32)
    plain = Sampling(*(np.full(2, value, np.float32) for value in Sampling()))
    special = Sampling(
        *(
            np.array([old[0], new], np.float32)
            for old, new in zip(plain, (0.5, 2, 0.9, 0.1, 3, 1, 1), strict=True)
        )
    )
    past = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), history([0], (1, 0, 0, 2)))
    rows = [
        jit_filter(jit_penalties(logits, sampling, past), sampling)
        for sampling in (plain, special)
    ]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    assert (rows[0][1] != rows[1][1]).any()
