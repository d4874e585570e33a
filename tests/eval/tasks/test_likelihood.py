"""Likelihoods of token lists: windows, packing, and a real small model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.eval.tasks import likelihood
from gptjax.eval.tasks.likelihood import score_pairs
from gptjax.models import gpt
from gptjax.models import settings as model_settings
from gptjax.parallel.sharding import batch_sharding
from gptjax.train.load_model import Trained
from tests import helpers


def by_position(batch):
    """ln P = -1 / the number of inputs; token 7 is never the most probable."""
    positions = (1 + batch['positions']).astype(np.float32)
    return -1 / positions, batch['targets'] != 7


def score(pairs, context, batch_size=2):
    return score_pairs(by_position, pairs, context, batch_size, pad_id=0)


def test_the_windows_of_the_docstring():
    # [B a b] [c d e f g h]: each pair of targets has 3 and 4 inputs.
    (found,) = score([([1, 2, 3], [4, 5, 6, 8, 9, 10])], context=4)
    assert found.logprob == pytest.approx(3 * (-1 / 3 - 1 / 4)) and found.greedy


def test_a_long_prompt_loses_its_beginning():
    # The last four of five inputs are read: targets 5 and 6 after 3 and 4 inputs.
    (found,) = score([([1, 2, 3, 4], [5, 6])], context=4)
    assert found.logprob == pytest.approx(-1 / 3 - 1 / 4)
    pairs = [([1, 2, 3, 4], [5, 6]), ([1, 2, 3], [5, 6])]
    assert likelihood.count_truncated(pairs, 4) == 1


def test_one_unlikely_token_is_enough_not_to_be_greedy():
    found = score([([1], [2, 7]), ([1], [2, 3]), ([7], [2]), ([1], [])], context=8)
    assert [scored.greedy for scored in found] == [False, True, True, True]
    assert found[3].logprob == 0


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=9
    ),
    context=st.integers(1, 12),
)
def test_every_token_is_scored_once_and_prompts_never(lengths, context):
    pairs = [
        ([100 * n] * before, [100 * n + 1 + i for i in range(after)])
        for n, (before, after) in enumerate(lengths)
    ]
    seen = []

    def record(batch):
        seen.extend(batch['targets'][batch['weights'] > 0].tolist())
        return np.full(batch['inputs'].shape, -1.0), batch['targets'] >= 0

    found = score_pairs(record, pairs, context, 3, pad_id=0)
    assert sorted(seen) == sorted(token for _, after in pairs for token in after)
    assert [scored.logprob for scored in found] == [-after for _, after in lengths]


@pytest.fixture(scope='module')
def model():
    """(score_batch, a function from tokens to the logits after each token)."""
    config = helpers.model_settings()
    params = gpt.init_params(config, jax.random.key(0))

    @jax.jit
    def forward(inputs, segments):
        return gpt.bind(config, params)(inputs, segments, jnp.arange(32)[None])[0]

    def logits_after(tokens):
        inputs, segments = np.zeros((2, 1, 32), np.int32)
        inputs[0, : len(tokens)] = tokens
        segments[0, : len(tokens)] = 1
        return np.asarray(forward(inputs, segments))[: len(tokens)]

    scores = likelihood.make_score_batch(
        Trained(config, params, None, 0), helpers.mesh_of()
    )
    return scores, logits_after


@pytest.mark.slow
def test_a_packed_batch_of_a_model_equals_a_forward_pass_of_each(model):
    scores, logits_after = model
    random = np.random.default_rng(0)
    draw = lambda count: random.integers(3, 96, count).tolist()
    sizes = ((1, 4), (9, 3), (2, 1), (12, 8), (30, 2), (5, 5))
    pairs = [(draw(before), draw(after)) for before, after in sizes]
    found = score_pairs(scores, pairs, context=32, batch_size=2, pad_id=0)
    for (before, after), scored in zip(pairs, found, strict=True):
        logits = logits_after([*before, *after[:-1]])[len(before) - 1 :]
        rows = jax.nn.log_softmax(logits)[np.arange(len(after)), after]
        assert scored.logprob == pytest.approx(float(rows.sum()), rel=1e-5)


@pytest.mark.parametrize('context', [1, 2])
def test_chunks_give_the_same_scores_with_less_memory_for_logits(context):
    V = 4096
    config = model_settings.resolve(helpers.config().model, V)
    params = gpt.init_params(config, jax.random.key(0))
    mesh = helpers.mesh_of(context=context)
    batch = jax.device_put(helpers.packed_batch(batch=32), batch_sharding(mesh))
    found, memory = [], []
    for chunk in (64, 1024):
        with jax.set_mesh(mesh):
            lowered = likelihood.batch_scores.lower(config, params, batch, chunk)
            compiled = lowered.compile()
            memory.append(compiled.memory_analysis().temp_size_in_bytes)
            found.append(compiled(params, batch))
    # Logits are about 1 and sums of 32 products, so float32 rounds them to 2^-24.
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6)
    np.testing.assert_array_equal(found[0][1], found[1][1])
    logits = 4 * 32 * 32 * V // context
    assert memory[1] > logits and memory[0] < logits / 4


def test_what_greedy_decoding_writes_is_greedy(model):
    scores, logits_after = model
    tokens = [5, 9, 11]
    for _ in range(6):
        tokens.append(int(logits_after(tokens)[-1].argmax()))
    other = [*tokens[:-1], (tokens[-1] + 1) % 96]
    pairs = [(tokens[:3], tokens[3:]), (other[:3], other[3:])]
    found = score_pairs(scores, pairs, context=32, batch_size=2, pad_id=0)
    assert [scored.greedy for scored in found] == [True, False]
