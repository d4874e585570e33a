"""Filters against rows worked out by hand, draws against their distribution."""

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

# In no order, so that a filter has to sort; no two are alike.
PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]

filtered = jax.jit(filter_logits)
drawn = jax.jit(draw_tokens)


def kept(logits=LOGITS, **sampling):
    """The probabilities that are left, renormalised: (B, V)."""
    sampling = Sampling(**{name: np.asarray(x) for name, x in sampling.items()})
    return np.asarray(jax.nn.softmax(filtered(logits, sampling), axis=-1))


@pytest.mark.parametrize(
    'sampling, expected',
    [
        (dict(), [0.15, 0.5, 0.05, 0.3]),
        (dict(top_k=1), [0, 1, 0, 0]),
        (dict(top_k=2), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_k=9), [0.15, 0.5, 0.05, 0.3]),
        # The likeliest until they add up: the one that crosses the line stays.
        (dict(top_p=0.45), [0, 1, 0, 0]),
        (dict(top_p=0.55), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=0.9), [3 / 19, 10 / 19, 0, 6 / 19]),
        (dict(top_p=1e-9), [0, 1, 0, 0]),
        # Of the likeliest's 0.5: at least 0.1, then at least 0.25.
        (dict(min_p=0.2), [3 / 19, 10 / 19, 0, 6 / 19]),
        (dict(min_p=0.5), [0, 5 / 8, 0, 3 / 8]),
        (dict(min_p=1.0), [0, 1, 0, 0]),
        # Squared and renormalised; and then 250/365 and 90/365 are above 0.9.
        (dict(temperature=0.5), [22.5 / 365, 250 / 365, 2.5 / 365, 90 / 365]),
        (dict(temperature=0.5, top_p=0.9), [0, 250 / 340, 0, 90 / 340]),
        # Of the three that top-k leaves the first two have 16/19, of all 16/20.
        (dict(top_k=3, top_p=0.82), [0, 5 / 8, 0, 3 / 8]),
        (dict(top_p=0.82), [3 / 19, 10 / 19, 0, 6 / 19]),
    ],
    ids=str,
)
def test_filters_keep_what_they_should(sampling, expected):
    np.testing.assert_allclose(kept(**sampling)[0], expected, rtol=1e-5)


def test_equally_likely_tokens_stay_together():
    logits = jnp.asarray([[1.0, 3.0, 1.0, 2.0, 1.0, 0.0]])
    assert (kept(logits, top_k=3) > 0).tolist() == [[1, 1, 1, 1, 1, 0]]
    assert (kept(jnp.zeros((1, 8)), top_p=0.3) > 0).all()


@pytest.mark.parametrize('seed', range(4))
def test_filters_equal_a_sort(seed):
    """The same sets as by sorting, on rows as long as a vocabulary."""
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((4, 1000))).astype(np.float32)
    top_k = np.array([0, 1, 40, 999])
    top_p = np.array([0.9, 1.0, 0.5, 0.999], np.float32)
    ours = kept(jnp.asarray(logits), top_k=top_k, top_p=top_p) > 0
    for row in range(4):
        order = np.argsort(-logits[row])[: top_k[row] or None]
        share = np.exp(logits[row][order].astype(np.float64))
        share /= share.sum()
        before = np.cumsum(share) - share
        expected = set(order[before < top_p[row]].tolist())
        assert set(np.flatnonzero(ours[row]).tolist()) == expected


def test_top_p_of_one_keeps_every_token():
    # Sums of many small shares reach one in float32 before the row ends.
    logits = 4 * jax.random.normal(jax.random.key(0), (8, 4096))
    assert np.isfinite(filtered(logits, Sampling(top_p=np.float32(1)))).all()


@pytest.mark.parametrize('temperature', [1e-6, 1e-30, 1e-37])
def test_the_least_temperatures_are_the_likeliest_token(temperature):
    logits = 100 * LOGITS + 300
    np.testing.assert_array_equal(
        kept(logits, temperature=np.float32(temperature)), [[0, 1, 0, 0]]
    )


def test_each_row_has_its_own_parameters():
    rows = kept(
        jnp.tile(LOGITS, (3, 1)),
        temperature=np.array([1.0, 1.0, 0.5]),
        top_k=np.array([2, 0, 0]),
        min_p=np.array([0.0, 1.0, 0.0]),
    )
    expected = [
        [0, 5 / 8, 0, 3 / 8],
        [0, 1, 0, 0],
        [22.5 / 365, 250 / 365, 2.5 / 365, 90 / 365],
    ]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


@pytest.mark.parametrize(
    'sampling, expected',
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=2.0), PROBABILITIES**0.5 / (PROBABILITIES**0.5).sum()),
        (Sampling(top_k=2), [0, 5 / 8, 0, 3 / 8]),
        (Sampling(top_p=0.9), [3 / 19, 10 / 19, 0, 6 / 19]),
        (Sampling(min_p=0.5), [0, 5 / 8, 0, 3 / 8]),
    ],
    ids=str,
)
def test_draws_have_the_distribution(sampling, expected):
    count = 8192
    seeds = jnp.arange(count, dtype=jnp.uint32)
    logits = jnp.tile(LOGITS, (count, 1))
    tokens = drawn(logits, seeds, jnp.full(count, 7), sampling)
    shares = np.bincount(tokens, minlength=4) / count
    # Four standard deviations; what may not be drawn never is.
    expected = np.asarray(expected)
    assert (np.abs(shares - expected) <= 4 * np.sqrt(expected / count)).all()


def test_draws_differ_by_position_and_repeat_by_seed():
    count = 64
    logits = jnp.zeros((count, 1000))
    same = jnp.full(count, 5, jnp.uint32)
    by_position = drawn(logits, same, jnp.arange(count), Sampling())
    assert len(np.unique(by_position)) > count / 2
    again = drawn(logits, same, jnp.arange(count), Sampling())
    np.testing.assert_array_equal(by_position, again)
    assert len(np.unique(drawn(logits, same, jnp.full(count, 3), Sampling()))) == 1


def test_a_draw_does_not_depend_on_its_neighbours():
    logits = jax.random.normal(jax.random.key(0), (6, 50))
    seeds, places = jnp.arange(6, dtype=jnp.uint32), jnp.arange(6) + 3
    together = drawn(logits, seeds, places, Sampling())
    for row in range(6):
        part = slice(row, row + 1)
        alone = drawn(logits[part], seeds[part], places[part], Sampling())
        assert alone[0] == together[row]
    turned = drawn(logits[::-1], seeds[::-1], places[::-1], Sampling())
    np.testing.assert_array_equal(turned[::-1], together)


def test_temperature_zero_is_the_likeliest_by_row():
    logits = jnp.tile(LOGITS, (64, 1))
    temperature = np.where(np.arange(64) % 2, 1.0, 0.0)
    seeds = jnp.arange(64, dtype=jnp.uint32)
    tokens = drawn(logits, seeds, jnp.zeros(64, int), Sampling(temperature))
    assert (np.asarray(tokens)[::2] == 1).all()
    assert len(np.unique(np.asarray(tokens)[1::2])) > 1


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
        # Of prompt and reply: divided where positive, multiplied where negative.
        (
            dict(repetition_penalty=2.0),
            history(seen=[0, 3], counts=(0, 1, 0, 0)),
            [1, -4, 1, -2],
        ),
        # Of the reply alone: once, or as often as it came.
        (dict(presence_penalty=0.5), history([0], (0, 1, 3, 0)), [2, -2.5, 0.5, -1]),
        (dict(frequency_penalty=0.5), history([0], (0, 1, 3, 0)), [2, -2.5, -0.5, -1]),
        (dict(), history(bias=(0, 5, 0, -100)), [2, 3, 1, -101]),
    ],
    ids=str,
)
def test_penalties_by_hand(sampling, past, expected):
    logits = jnp.asarray([[2.0, -2.0, 1.0, -1.0]])
    ruled = jax.jit(apply_penalties)(logits, Sampling(**sampling), past)
    np.testing.assert_array_equal(ruled[0], np.asarray(expected, np.float32))


def test_a_neighbours_penalties_and_filters_change_no_other_row():
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
        filtered(jax.jit(apply_penalties)(logits, sampling, past), sampling)
        for sampling in (plain, special)
    ]
    np.testing.assert_array_equal(rows[0][0], rows[1][0])
    assert (rows[0][1] != rows[1][1]).any()


def test_the_likeliest_is_the_first_of_the_largest():
    rows = np.random.default_rng(0).integers(0, 5, (200, 37)).astype(np.float32)
    rows[0], rows[1, 3:] = -np.inf, -np.inf
    found = jax.jit(argmax)(rows)
    np.testing.assert_array_equal(found, rows.argmax(axis=-1))
    assert found.dtype == jnp.int32
    # Of a row of NaN a token all the same, as it is looked up.
    assert 0 <= argmax(jnp.full((1, 37), np.nan))[0] < 37
