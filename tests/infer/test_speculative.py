"""A draft changes the speed of a reply, and nothing of its distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import SamplingParameters
from gptjax.infer.speculative import accept_draft
from tests import helpers
from tests.infer import engines

CONTEXT, GUESSES = 32, 3


def random_model(seed, scale=0.4, **fields):
    model = helpers.model_settings(context=CONTEXT, **fields)
    return model, engines.random_params(model, seed, scale)


@pytest.fixture(scope='module')
def target():
    return random_model(0)


@pytest.fixture(scope='module')
def plain(target):
    engine = Engine(*target, engines.tokenizer(), slots=4)
    engine.warm_up()
    return engine


def with_draft(target, draft, **options):
    options = dict(dict(slots=4, guesses=GUESSES), **options)
    engine = Engine(*target, engines.tokenizer(), draft=draft, **options)
    engine.warm_up()
    return engine


@pytest.fixture(scope='module')
def fast(target):
    return with_draft(target, random_model(1, num_layers=1))


# ---- the rule


def joint_of(p, q, count=40_000):
    """Shares of the two first tokens of `accept_draft`, (V, V), over many seeds.

    p, q: (T, V) and (T - 1, V), the same whatever was drawn before. What follows a
    refused guess is drawn from p, as the next step would.
    """
    V, T = p.shape[-1], p.shape[0]
    rng = np.random.default_rng(0)
    guesses = np.stack([rng.choice(V, count, p=row) for row in q], axis=1)
    tile = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (count, *x.shape))
    tokens, counts = jax.jit(accept_draft)(
        tile(p),
        tile(q),
        guesses.astype(np.int32),
        np.arange(count, dtype=np.uint32),
        np.broadcast_to(np.arange(T), (count, T)),
    )
    tokens, counts = np.asarray(tokens), np.asarray(counts)
    later = rng.choice(V, count, p=p[1])
    second = np.where(counts > 1, tokens[:, 1], later)
    joint = np.zeros((V, V))
    np.add.at(joint, (tokens[:, 0], second), 1 / count)
    return joint, counts


def test_kept_and_redrawn_tokens_have_the_targets_distribution():
    p = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25] * 4])
    q = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    joint, counts = joint_of(p, q)
    expected = np.outer(p[0], p[1])
    error = np.abs(joint - expected)
    assert (error <= 4.5 * np.sqrt(expected * (1 - expected) / 40_000)).all()
    # A guess is kept with probability sum min(p, q): .1 + .2 + .2.
    assert abs((counts > 1).mean() - 0.5) < 0.02


def test_equal_models_keep_every_guess():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    _, counts = joint_of(p, p[:2], count=2000)
    assert (counts == 3).all()


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
    shares = np.bincount(tokens[:, 0], minlength=4) / count
    assert (np.abs(shares - p[0]) <= 4.5 * np.sqrt(p[0] / count)).all()


# ---- the engine


def replies(engine, how, count):
    prompt = [5, 6, 7]
    hows = [SamplingParameters(**{**how, 'seed': seed}) for seed in range(count)]
    return [engines.ids(r) for r in engine.complete([prompt] * count, hows)]


def test_greedy_replies_are_the_same(plain, fast):
    how = dict(temperature=0.0, max_tokens=20, logit_bias={engines.EOS: -1000.0})
    assert replies(fast, how, 1) == replies(plain, how, 1)
    penalized = dict(how, presence_penalty=1.0, repetition_penalty=1.3)
    assert replies(fast, penalized, 1) == replies(plain, penalized, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    'how',
    [dict(), dict(temperature=0.5, top_k=4), dict(top_p=0.6, frequency_penalty=3.0)],
    ids=str,
)
def test_replies_have_the_targets_distribution(plain, fast, how):
    """Of the first three tokens, each summed into eight classes: chi-square."""
    how = dict(how, max_tokens=3, logit_bias={engines.EOS: -1000.0})
    count = 3000
    tables = []
    for engine in (plain, fast):
        rows = np.array(replies(engine, how, count)) % 8
        tables.append(np.bincount(rows @ [64, 8, 1], minlength=512))
    both = np.sum(tables, axis=0)
    often = both >= 10
    rare = [t[~often].sum() for t in tables]
    first, second = (
        np.append(t[often], r).astype(float) for t, r in zip(tables, rare, strict=True)
    )
    chi_square = ((first - second) ** 2 / np.maximum(first + second, 1)).sum()
    freedom = len(first) - 1
    assert chi_square < freedom + 4.5 * np.sqrt(2 * freedom)


def test_replies_do_not_depend_on_what_else_runs(fast):
    how = dict(max_tokens=12, logprobs=2)
    hows = [SamplingParameters(**how, seed=seed) for seed in range(6)]
    prompts = [[5 + n] * (3 * n + 1) for n in range(6)]
    before = fast.stats().compilations
    together = fast.complete(prompts, hows)
    assert fast.stats().compilations == before
    for prompt, parameters, reply in zip(prompts, hows, together, strict=True):
        assert fast.complete([prompt], parameters) == [reply]


def test_scores_are_the_targets(plain, fast):
    how = SamplingParameters(
        max_tokens=10, seed=3, logit_bias={engines.EOS: -1000.0}, logprobs=3
    )
    reply = fast.complete([[5, 6]], how)[0]
    scored = SamplingParameters(max_tokens=0, prompt_logprobs=True)
    again = plain.complete([[5, 6, *engines.ids(reply)]], scored)[0]
    np.testing.assert_allclose(
        [token.logprob for token in reply.tokens],
        [token.logprob for token in again.prompt[2:]],
        atol=2e-4,
    )


def test_a_reply_ends_exactly_and_fills_the_context(fast):
    how = SamplingParameters(
        temperature=0.0, max_tokens=1000, logit_bias={engines.EOS: -1000.0}
    )
    reply = fast.complete([[5, 6]], how)[0]
    assert len(reply.tokens) == CONTEXT - 2 and reply.finish == 'length'
    stop = engines.ids(reply)[6]
    at = engines.ids(reply).index(stop)
    cut = SamplingParameters(**{**vars(how), 'stop_tokens': (stop,)})
    assert engines.ids(fast.complete([[5, 6]], cut)[0]) == engines.ids(reply)[:at]


def test_a_grammar_rules_every_token(fast):
    grammar = engines.Even()
    reply = fast.complete([[5, 6]], SamplingParameters(max_tokens=9, grammar=grammar))[
        0
    ]
    assert engines.ids(reply) == grammar.taken and len(grammar.taken) == 4
    assert all(token % 2 == 0 for token in grammar.taken)


@pytest.mark.slow
def test_a_draft_that_is_the_model_saves_steps(target):
    engine = with_draft(target, target)
    how = SamplingParameters(
        temperature=0.0, max_tokens=20, logit_bias={engines.EOS: -1000.0}
    )
    engine.submit([5, 6], how, lambda update: None)
    steps = 0
    while engine.step():
        steps += 1
    assert steps <= 20 / (GUESSES + 1) + 3


def test_drafts_that_cannot_be(target):
    _, params = target
    small = helpers.model_settings(position='learned', context=CONTEXT // 2)
    with pytest.raises(UserError, match='as many'):
        Engine(*target, engines.tokenizer(), draft=(small, params))
    with pytest.raises(UserError, match='guesses=0'):
        Engine(*target, engines.tokenizer(), draft=target, guesses=0)
