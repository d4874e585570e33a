"""Replies equal the full forward pass and do not depend on other requests."""

import random

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gptjax.infer.request import SamplingParameters
from gptjax.models import gpt
from gptjax.models.cache import empty_int8_cache
from gptjax.parallel.sharding import partition_spec
from tests import helpers
from tests.infer.engines import (
    CONTEXT,
    DRAWN,
    EOS,
    GREEDY,
    NO_EOS,
    PROMPTS,
    Even,
    change,
    ids,
    new_engine,
    random_params,
)

# ---- equal to the full forward pass


@pytest.mark.parametrize(
    'prompt, max_tokens',
    [
        *((prompt, 10) for prompt in PROMPTS),
        ([4] * (CONTEXT - 3), 1000),
        ([4] * (CONTEXT - 1), 1000),
    ],
    ids=str,
)
def test_greedy_replies_equal_the_full_forward_up_to_the_end_of_the_context(
    engine, full_forward, prompt, max_tokens
):
    reply = engine.complete([prompt], change(GREEDY, max_tokens=max_tokens))[0]
    assert reply.finish == 'length'
    assert len(reply.tokens) == min(max_tokens, CONTEXT - len(prompt))
    expected = full_forward(prompt + ids(reply))[len(prompt) - 1 : -1]
    for token, logprobs_V in zip(reply.tokens, expected, strict=True):
        np.testing.assert_allclose(token.logprob, logprobs_V[token.id], atol=2e-4)
        logprobs_V[EOS] = -np.inf
        assert logprobs_V[token.id] > logprobs_V.max() - 2e-4


def test_prompts_are_scored_before_the_reply(engine, full_forward):
    prompt = PROMPTS[3]
    parameters = SamplingParameters(max_tokens=2, prompt_logprobs=True, logprobs=3)
    updates = list(engine.reply(prompt, change(parameters, logit_bias=NO_EOS)))
    assert [update.prompt for update in updates[1:]] == [None] * (len(updates) - 1)
    only_scored = engine.complete([prompt], change(parameters, max_tokens=0))[0]
    assert only_scored.finish == 'length' and only_scored.tokens == ()
    assert only_scored.prompt == updates[0].prompt
    assert [token.id for token in only_scored.prompt] == prompt
    assert only_scored.prompt[0].logprob is None
    for token, logprobs_V in zip(
        only_scored.prompt[1:], full_forward(prompt), strict=False
    ):
        np.testing.assert_allclose(token.logprob, logprobs_V[token.id], atol=2e-4)
        top = np.sort(logprobs_V)[::-1][:3]
        np.testing.assert_allclose([p for _, p in token.top], top, atol=2e-4)
        # If the token is one of the alternatives, both have the same float.
        assert dict(token.top).get(token.id, token.logprob) == token.logprob


def test_alternatives_are_sorted_and_have_the_identical_float_of_the_token(engine):
    tokens = engine.complete([PROMPTS[1]], change(DRAWN, logit_bias=NO_EOS))[0].tokens
    for token in tokens:
        assert len(token.top) == 20
        assert sorted(token.top, key=lambda x: -x[1]) == list(token.top)
        assert dict(token.top).get(token.id, token.logprob) == token.logprob
    assert 0 < sum(token.id in dict(token.top) for token in tokens) < 12
    greedy = SamplingParameters(temperature=0.0, max_tokens=8, logprobs=1)
    for token in engine.complete([PROMPTS[1]], greedy)[0].tokens:
        assert token.top == ((token.id, token.logprob),)


@pytest.mark.parametrize('context', (80, 50))
def test_the_length_of_the_cache_changes_no_token(context):
    """Log-probabilities are equal to rounding, two units in the last place of 8.

    They are not bitwise equal: the number of pages decides how XLA fuses the products
    with the values and their sum, and the number of positions how a sum is vectorised.
    """
    model = helpers.model_settings(num_kv_heads=2, windows=(9, 0), context=160)
    params = random_params(model)
    parameters = change(DRAWN, prompt_logprobs=True, logit_bias=NO_EOS)
    engines = [new_engine(model, params, context=size) for size in (160, context)]
    assert [engine.context for engine in engines] == [160, context]
    prompts = [*PROMPTS[:3], PROMPTS[3][: context - 20]]
    for sampling in (parameters, change(parameters, temperature=0.0)):
        whole, short = (engine.complete(prompts, sampling) for engine in engines)
        assert [ids(reply) for reply in short] == [ids(reply) for reply in whole]
        values = [
            [t.logprob for reply in some for t in (*reply.prompt[1:], *reply.tokens)]
            for some in (short, whole)
        ]
        np.testing.assert_allclose(*values, rtol=0, atol=2e-6)


# ---- independent of other requests


def run_schedule(engine, seed):
    """Submits and cancels requests at random steps; compares replies with runs alone.

    Returns the number of requests that were cancelled while they ran.
    """
    draw = random.Random(seed)

    def random_request():
        length = draw.choice((1, 2, 15, 16, 17, 31, 33, 40))
        prompt = [draw.randrange(2, helpers.VOCAB) for _ in range(length)]
        if draw.random() < 0.5:  # a prefix that other prompts share
            prompt = (PROMPTS[3][: draw.choice((16, 20, 33))] + prompt)[: CONTEXT - 1]
        return prompt, SamplingParameters(
            max_tokens=draw.randrange(0, 20),
            temperature=draw.choice((0.0, 0.7, 1.3)),
            top_k=draw.choice((0, 5)),
            top_p=draw.choice((0.5, 1.0)),
            min_p=draw.choice((0.0, 0.1)),
            repetition_penalty=draw.choice((1.0, 1.5)),
            presence_penalty=draw.choice((0.0, 0.5)),
            frequency_penalty=draw.choice((0.0, 0.5)),
            logit_bias=draw.choice(({}, {7: 2.0})),
            seed=draw.randrange(2**32),
            stop=draw.choice(((), ('ab', 'c'))),
            logprobs=draw.choice((None, 0, 3)),
            prompt_logprobs=draw.random() < 0.2,
        )

    requests = [random_request() for _ in range(14)]
    with_grammar = set(draw.sample(range(len(requests)), 3))

    def get_request(number):
        """A request, with a new grammar if it has one."""
        prompt, parameters = requests[number]
        if number in with_grammar:
            parameters = change(parameters, grammar=Even())
        return prompt, parameters

    updates_of = [[] for _ in requests]
    request_ids, cancelled, unsubmitted = {}, set(), list(range(len(requests)))
    while unsubmitted or engine.step():
        if unsubmitted and draw.random() < 0.4:
            number = unsubmitted.pop()
            request_ids[number] = engine.submit(
                *get_request(number), updates_of[number].append
            )
        if request_ids and draw.random() < 0.08:
            number = draw.choice(list(request_ids))
            engine.cancel(request_ids[number])
            cancelled.add(number)
    num_interrupted = 0
    for number, updates in enumerate(updates_of):
        assert updates[-1].finish
        assert not any(update.finish for update in updates[:-1])
        alone = list(engine.reply(*get_request(number)))
        if updates[-1].finish == 'cancelled':
            assert number in cancelled
            num_interrupted += 1
            assert updates[:-1] == alone[: len(updates) - 1]
        else:
            assert updates == alone
    return num_interrupted


@pytest.mark.parametrize('seed', range(3))
def test_random_schedules_change_no_reply_and_compile_nothing(engine, seed):
    before = engine.stats().compilations
    run_schedule(engine, seed)
    assert engine.stats().compilations == before


@pytest.mark.slow
def test_many_random_schedules(engine):
    assert sum(run_schedule(engine, seed) for seed in range(100, 120)) > 5


def test_a_cached_prefix_changes_no_reply(engine, model, params):
    uncached = new_engine(model, params, prefix_bytes=0)
    prompt = [*range(40, 57)] * 3  # 51 tokens: three full chunks
    before = engine.stats().cached_tokens
    for tokens, num_cached in ((prompt, 0), (prompt, 48), (prompt + [4] * 5, 96)):
        replies = [e.complete([tokens], DRAWN)[0] for e in (engine, uncached)]
        assert replies[0] == replies[1]
        assert engine.stats().cached_tokens - before == num_cached
    assert uncached.stats().cached_tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['float32', 'int8 cache', 'draft', 'bfloat16'])
def test_long_and_short_neighbours_change_no_bit_of_the_optimised_program(kind):
    """Compiles with all of XLA's optimisations, which the other tests switch off.

    The other requests decide how many of the three pages of 128 positions are read.
    """
    model = helpers.model_settings(
        context=320, dtype='bfloat16' if kind == 'bfloat16' else 'float32'
    )
    params = random_params(model)
    options = dict(new_cache=empty_int8_cache) if kind == 'int8 cache' else {}
    if kind == 'draft':
        options = dict(draft=(model, random_params(model, seed=1)), guesses=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('gptjax.models.cache.MIN_PAGE_SIZE', 128)
        jax.config.update('jax_disable_most_optimizations', False)
        try:
            engine = new_engine(model, params, prefix_bytes=0, **options)
        finally:
            jax.config.update('jax_disable_most_optimizations', True)
    rng = np.random.default_rng(0)
    random_tokens = lambda length: rng.integers(3, helpers.VOCAB, length).tolist()
    parameters = SamplingParameters(
        max_tokens=40, logprobs=20, seed=3, logit_bias=NO_EOS
    )
    prompt = random_tokens(100)  # the reply continues on the second page
    alone = engine.complete([prompt], parameters)[0]
    for lengths in ([250, 5, 130], [20, 20, 20]):
        others = [random_tokens(length) for length in lengths]
        assert engine.complete([*others, prompt], parameters)[-1] == alone


def test_a_long_prompt_does_not_stall_running_replies(engine):
    running, long = [], []
    engine.submit([5, 6], change(GREEDY, max_tokens=30), running.append)
    for _ in range(4):
        engine.step()
    engine.submit([*range(40, 90)], GREEDY, long.append)
    before = len(running)
    while not long:
        engine.step()
    # The prompt has four chunks; each step also samples a token of the running reply.
    assert len(running) - before >= 4


@pytest.mark.slow
def test_complete_leaves_no_slot_empty(model, params, monkeypatch):
    engine = new_engine(model, params, slots=16)
    steps, decode = [], engine._runner.decode
    monkeypatch.setattr(
        engine._runner, 'decode', lambda *args: steps.append(0) or decode(*args)
    )
    parameters = SamplingParameters(max_tokens=4, logit_bias=NO_EOS)
    prompts = [[5 + number, 6, 7] for number in range(48)]
    alone = [engine.complete([prompt], parameters)[0] for prompt in prompts]
    steps.clear()
    assert engine.complete(prompts, parameters) == alone
    # Each slot has three replies of four steps, and two steps between replies.
    assert len(steps) <= 3 * 4 + 2 * 2


# ---- sampling parameters


def test_the_seed_decides_the_reply(engine):
    parameters = [SamplingParameters(max_tokens=12, seed=seed) for seed in (1, 2, 1)]
    rows = [ids(reply) for reply in engine.complete([PROMPTS[1]] * 3, parameters)]
    assert rows[0] == rows[2] != rows[1]


def test_biases_force_and_forbid_tokens(engine):
    forced = SamplingParameters(max_tokens=5, logit_bias={9: 1000.0})
    assert ids(engine.complete([PROMPTS[1]], forced)[0]) == [9] * 5
    first = ids(engine.complete([PROMPTS[1]], GREEDY)[0])[0]
    forbidden = change(GREEDY, logit_bias={first: -1000.0, **NO_EOS})
    assert first not in ids(engine.complete([PROMPTS[1]], forbidden)[0])


def test_penalties_apply_to_the_reply_and_the_prompt(engine):
    present = SamplingParameters(max_tokens=20, temperature=0.0, presence_penalty=100.0)
    row = ids(engine.complete([PROMPTS[1]], present)[0])
    assert len(set(row)) == len(row)
    even = list(range(2, helpers.VOCAB, 2))
    assert set(ids(engine.complete([even], GREEDY)[0])) & set(even)
    penalised = engine.complete([even], change(GREEDY, repetition_penalty=100.0))[0]
    assert not set(ids(penalised)) & set(even)


def test_grammars_compile_nothing_and_requests_that_wait_for_their_slot_run(one_slot):
    before = one_slot.stats().compilations
    parameters = [SamplingParameters(max_tokens=10, grammar=Even()) for _ in range(3)]
    replies = one_slot.complete([PROMPTS[1]] * 3, parameters)
    for reply, sampling in zip(replies, parameters, strict=True):
        assert ids(reply) == sampling.grammar.accepted and len(reply.tokens) == 4
    assert one_slot.stats().compilations == before


def test_a_grammar_constrains_only_its_own_reply(engine):
    free = SamplingParameters(max_tokens=10, seed=3)
    grammar = Even()
    parameters = [change(free, grammar=grammar), free]
    replies = engine.complete([PROMPTS[1]] * 2, parameters)
    assert ids(replies[0]) == grammar.accepted and len(grammar.accepted) == 4
    assert all(token % 2 == 0 for token in grammar.accepted)
    assert replies[0].finish == 'stop'
    assert replies[1] == engine.complete([PROMPTS[1]], free)[0]
    assert any(token % 2 for token in ids(replies[1]))


# ---- the end of a reply


def test_eos_and_stop_tokens_end_a_reply(engine):
    tokens = ids(engine.complete([PROMPTS[1]], GREEDY)[0])
    stop, end = tokens[4], tokens.index(tokens[4])
    reply = engine.complete([PROMPTS[1]], change(GREEDY, stop_tokens=(stop,)))[0]
    assert (ids(reply), reply.finish, reply.stopped_by) == (tokens[:end], 'stop', stop)
    assert reply.ending.id == stop and reply.ending.logprob < 0
    forced = SamplingParameters(max_tokens=5, logit_bias={EOS: 1000.0}, logprobs=0)
    reply = engine.complete([PROMPTS[1]], forced)[0]
    assert (reply.text, reply.finish, reply.stopped_by) == ('', 'stop', None)
    assert reply.ending.id == EOS and reply.ending.logprob < 0


def test_stop_strings_end_a_reply_and_are_not_part_of_it(engine):
    whole = engine.complete([PROMPTS[1]], GREEDY)[0]
    stop = whole.text[3:6]
    end = whole.text.index(stop)
    reply = engine.complete([PROMPTS[1]], change(GREEDY, stop=(stop,)))[0]
    assert (reply.text, reply.stopped_by) == (whole.text[:end], stop)
    assert reply.tokens == whole.tokens[:end]


# ---- several devices


@pytest.mark.parametrize('tensor', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_model_on_several_devices_gives_the_same_replies(
    model, params, engine, tensor
):
    if tensor == 8:  # one query head on each device; all key heads on every device
        model = helpers.model_settings(num_heads=8, num_kv_heads=4, context=CONTEXT)
        params = random_params(model)
        engine = new_engine(model, params)
    mesh = helpers.mesh_of(tensor=tensor)
    place = lambda leaf, axes: jax.device_put(
        np.asarray(leaf), NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh))
    )
    sharded = jax.tree.map(place, params, gpt.param_axes(model))
    up = sharded['layers']['mlp']['up']
    assert up.addressable_shards[0].data.size == up.size // tensor
    on_mesh = new_engine(model, sharded)
    before = on_mesh.stats().compilations
    replies, expected = (e.complete(PROMPTS, DRAWN) for e in (on_mesh, engine))
    with_grammar = change(DRAWN, grammar=Even())
    assert len(on_mesh.complete([PROMPTS[1]], with_grammar)[0].tokens) == 4
    assert on_mesh.stats().compilations == before
    for reply, other in zip(replies, expected, strict=True):
        assert ids(reply) == ids(other)
        np.testing.assert_allclose(
            [token.logprob for token in reply.tokens],
            [token.logprob for token in other.tokens],
            atol=1e-4,
        )
