"""A draft model changes the speed of replies, but not their distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.infer.speculative import accept_draft
from gptjax.models.settings import resolve
from tests import helpers
from tests.infer import engines
from tests.infer.engines import NO_EOS, change, ids

CONTEXT, GUESSES = 32, 3
GREEDY = SamplingParameters(temperature=0.0, max_tokens=20, logit_bias=NO_EOS)


def random_model(seed, **fields):
    model = helpers.model_settings(context=CONTEXT, **fields)
    return model, engines.random_params(model, seed)


@pytest.fixture(scope='module')
def target():
    return random_model(0)


@pytest.fixture(scope='module')
def plain(target):
    return engines.new_engine(*target)


@pytest.fixture(scope='module')
def fast(target):
    draft = random_model(1, num_layers=1)
    return engines.new_engine(*target, draft=draft, guesses=GUESSES)


# ---- the acceptance rule


def accept(p, q, count=40_000):
    """(draft tokens sampled from q, tokens, counts) of `accept_draft`, over many seeds.

    p (T, V) and q (T - 1, V) do not depend on the previous tokens.
    """
    rng = np.random.default_rng(0)
    drafts = np.stack([rng.choice(len(row), count, p=row) for row in q], axis=1)
    tile = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (count, *x.shape))
    tokens, counts = jax.jit(accept_draft)(
        tile(p),
        tile(q),
        drafts.astype(np.int32),
        np.arange(count, dtype=np.uint32),
        np.broadcast_to(np.arange(len(p)), (count, len(p))),
    )
    return np.asarray(tokens), np.asarray(counts)


def assert_distributed(counts, expected):
    """Shares of counts are within 4.5 standard deviations."""
    shares = counts / counts.sum()
    deviation = np.sqrt(expected * (1 - expected) / counts.sum())
    assert (np.abs(shares - expected) <= 4.5 * deviation).all()


def test_accepted_and_residual_tokens_have_the_targets_distribution():
    p = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25] * 4])
    q = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    tokens, counts = accept(p, q)
    # After a rejection, the next step samples from p.
    redrawn = np.random.default_rng(1).choice(4, len(counts), p=p[1])
    second = np.where(counts > 1, tokens[:, 1], redrawn)
    assert_distributed(
        np.bincount(4 * tokens[:, 0] + second, minlength=16),
        np.outer(p[0], p[1]).ravel(),
    )
    # The first draft token is accepted with probability sum min(p, q): .1 + .2 + .2.
    assert abs((counts > 1).mean() - 0.5) < 0.02


def test_equal_models_accept_every_draft_token():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    assert (accept(p, p[:2], count=2000)[1] == 3).all()


def test_without_a_draft_one_token_is_drawn_from_the_target():
    p = np.array([[0.5, 0.3, 0.2, 0.0], [0.25] * 4])
    count = 20_000
    tokens, counts = jax.jit(accept_draft)(
        jnp.broadcast_to(jnp.asarray(p, jnp.float32), (count, 2, 4)),
        jnp.zeros((count, 1, 4)),
        jnp.full((count, 1), 3),
        jnp.arange(count, dtype=jnp.uint32),
        jnp.zeros((count, 2), jnp.int32),
    )
    assert (counts == 1).all()
    assert_distributed(np.bincount(tokens[:, 0], minlength=4), p[0])


# ---- the engine


def test_greedy_replies_are_the_same(plain, fast):
    for parameters in (
        GREEDY,
        change(GREEDY, presence_penalty=1.0, repetition_penalty=1.3),
    ):
        replies = [
            ids(engine.complete([[5, 6, 7]], parameters)[0]) for engine in (plain, fast)
        ]
        assert replies[0] == replies[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [dict(), dict(temperature=0.5, top_k=4), dict(top_p=0.6, frequency_penalty=3.0)],
    ids=str,
)
def test_replies_have_the_targets_distribution(plain, fast, changes):
    """Chi-square of the first three tokens, each reduced to eight classes."""
    count, tables = 3000, []
    for engine in (plain, fast):
        parameters = [
            SamplingParameters(max_tokens=3, logit_bias=NO_EOS, seed=seed, **changes)
            for seed in range(count)
        ]
        replies = engine.complete([[5, 6, 7]] * count, parameters)
        rows = np.array([ids(reply) for reply in replies]) % 8
        tables.append(np.bincount(rows @ [64, 8, 1], minlength=512))
    frequent = np.sum(tables, axis=0) >= 10
    first, second = (
        np.append(table[frequent], table[~frequent].sum()).astype(float)
        for table in tables
    )
    chi_square = ((first - second) ** 2 / np.maximum(first + second, 1)).sum()
    freedom = len(first) - 1
    assert chi_square < freedom + 4.5 * np.sqrt(2 * freedom)


def test_replies_do_not_depend_on_other_requests(fast):
    prompts = [[5 + n] * (3 * n + 1) for n in range(6)]
    parameters = [
        SamplingParameters(max_tokens=12, logprobs=2, seed=seed) for seed in range(6)
    ]
    before = fast.stats().compilations
    together = fast.complete(prompts, parameters)
    assert fast.stats().compilations == before
    for prompt, sampling, reply in zip(prompts, parameters, together, strict=True):
        assert fast.complete([prompt], sampling) == [reply]


def test_log_probabilities_are_those_of_the_target(plain, fast):
    drawn = change(GREEDY, temperature=1.0, max_tokens=10, seed=3, logprobs=3)
    reply = fast.complete([[5, 6]], drawn)[0]
    scored = SamplingParameters(max_tokens=0, prompt_logprobs=True)
    prompt = plain.complete([[5, 6, *ids(reply)]], scored)[0].prompt
    np.testing.assert_allclose(
        [token.logprob for token in reply.tokens],
        [token.logprob for token in prompt[2:]],
        atol=2e-4,
    )


def test_a_reply_fills_the_context_and_ends_at_a_stop_token(fast):
    parameters = change(GREEDY, max_tokens=1000)
    reply = fast.complete([[5, 6]], parameters)[0]
    assert len(reply.tokens) == CONTEXT - 2 and reply.finish == 'length'
    tokens = ids(reply)
    stopped = fast.complete([[5, 6]], change(parameters, stop_tokens=(tokens[6],)))[0]
    assert ids(stopped) == tokens[: tokens.index(tokens[6])]


def test_a_grammar_constrains_every_token(fast):
    grammar = engines.Even()
    parameters = SamplingParameters(max_tokens=9, grammar=grammar)
    reply = fast.complete([[5, 6]], parameters)[0]
    assert ids(reply) == grammar.accepted and len(grammar.accepted) == 4
    assert all(token % 2 == 0 for token in grammar.accepted)


@pytest.mark.slow
def test_a_draft_that_equals_the_target_saves_steps(target):
    engine = engines.new_engine(*target, draft=target, guesses=GUESSES)
    engine.submit([5, 6], GREEDY, lambda update: None)
    steps = 0
    while engine.step():
        steps += 1
    assert steps <= 20 / (GUESSES + 1) + 3


def test_invalid_drafts_are_refused(target):
    short = helpers.model_settings(position='learned', context=CONTEXT // 2)
    other = resolve(helpers.config(context=CONTEXT).model, helpers.VOCAB + 1)
    for settings, guesses, message in (
        (other, 4, 'draft.vocab_size=97 differs from model.vocab_size=96'),
        (short, 4, 'draft.context=16 is shorter than the context of 32'),
        (target[0], 0, 'guesses=0'),
    ):
        draft = settings, target[1]
        with pytest.raises(UserError, match=message):
            Engine(*target, engines.tokenizer(), draft=draft, guesses=guesses)
