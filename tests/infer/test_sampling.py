"""Filters against rows worked out by hand, draws against their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.infer.sampling import Sampling, check_sampling, draw, filter_logits

# In no order, so that a filter has to sort; no two are alike.
PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32))[None]

filtered = jax.jit(filter_logits)
drawn = jax.jit(draw)


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


def test_top_k_keeps_so_many_where_logits_are_equal():
    assert (kept(jnp.zeros((1, 8)), top_k=3) > 0).sum() == 3


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


@pytest.mark.parametrize(
    'sampling, told',
    [
        (Sampling(temperature=-1.0), 'sample.temperature=-1.0: use a number 0 or more'),
        (Sampling(temperature=float('nan')), 'sample.temperature=nan'),
        (Sampling(top_k=-1), 'sample.top_k=-1'),
        (Sampling(top_p=0.0), 'sample.top_p=0.0: use a number above 0, at most 1'),
        (Sampling(top_p=1.5), 'sample.top_p=1.5'),
        (Sampling(min_p=1.5), 'sample.min_p=1.5: use a number from 0 to 1'),
    ],
    ids=str,
)
def test_what_cannot_be_drawn_by_is_refused(sampling, told):
    with pytest.raises(UserError, match=told):
        check_sampling(sampling)


def test_the_edges_are_fine():
    check_sampling(Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=1.0))
