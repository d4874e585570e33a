"""A reply is what it is alone, whatever else runs, and what the full forward says."""

import dataclasses
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
    PROMPTS,
    Even,
    ids,
    never_ending,
    new_engine,
    random_params,
)

# ---- equal to the model


@pytest.mark.parametrize('prompt', PROMPTS, ids=len)
def test_greedy_replies_and_their_scores_equal_the_full_forward(
    engine, full_forward, prompt
):
    reply = engine.complete([prompt], never_ending(GREEDY))[0]
    text = list(prompt)
    for token in reply.tokens:
        expected = full_forward(text)[-1].copy()
        np.testing.assert_allclose(token.logprob, expected[token.id], atol=2e-4)
        expected[EOS] = -np.inf
        assert expected[token.id] > expected.max() - 2e-4
        text.append(token.id)
    assert len(reply.tokens) == 10 and reply.finish == 'length'


def test_prompts_are_scored(engine, full_forward):
    prompt = PROMPTS[3]
    scored = SamplingParameters(max_tokens=0, prompt_logprobs=True, logprobs=3)
    reply = engine.complete([prompt], scored)[0]
    assert reply.finish == 'length' and reply.tokens == ()
    assert [token.id for token in reply.prompt] == prompt
    assert reply.prompt[0].logprob is None
    expected = full_forward(prompt)
    for place, token in enumerate(reply.prompt[1:]):
        np.testing.assert_allclose(token.logprob, expected[place, token.id], atol=2e-4)
        top = np.sort(expected[place])[::-1][:3]
        np.testing.assert_allclose([p for _, p in token.top], top, atol=2e-4)
        own = dict(token.top).get(token.id)
        assert own is None or own == token.logprob  # the identical float


def test_scores_come_before_the_reply(engine):
    parameters = SamplingParameters(max_tokens=2, prompt_logprobs=True)
    updates = list(engine.reply(PROMPTS[2], never_ending(parameters)))
    assert len(updates[0].prompt) == len(PROMPTS[2])
    assert [update.prompt for update in updates[1:]] == [None] * (len(updates) - 1)


def test_the_drawn_token_is_among_the_likeliest_as_the_identical_float(engine):
    reply = engine.complete([PROMPTS[1]], never_ending(DRAWN))[0]
    found = 0
    for token in reply.tokens:
        assert len(token.top) == 20
        assert sorted(token.top, key=lambda x: -x[1]) == list(token.top)
        if token.id in dict(token.top):
            found += 1
            assert dict(token.top)[token.id] == token.logprob
    assert 0 < found < 12


def test_greedy_takes_the_first_alternative(engine):
    listed = SamplingParameters(temperature=0.0, max_tokens=8, logprobs=1)
    for token in engine.complete([PROMPTS[1]], listed)[0].tokens:
        assert token.top[0] == (token.id, token.logprob)


# ---- independent of everything else


def run_schedule(engine, seed):
    """Random arrivals, lengths and cancellations; replies must be as they are alone.

    Returns how many were cancelled while they ran.
    """
    draw = random.Random(seed)

    def request():
        prompt = [draw.randrange(2, helpers.VOCAB) for _ in range(draw.choice(LENGTHS))]
        if draw.random() < 0.5:  # a beginning that others have too
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

    def new_request(number):
        """The request; its grammar, if it has one, knows nothing yet."""
        prompt, parameters = requests[number]
        if number in constrained:
            parameters = dataclasses.replace(parameters, grammar=Even())
        return prompt, parameters

    requests = [request() for _ in range(14)]
    constrained = set(draw.sample(range(len(requests)), 3))
    updates_of = [[] for _ in requests]
    request_ids, cancelled, todo = {}, set(), list(range(len(requests)))
    while todo or engine.step():
        if todo and draw.random() < 0.4:
            number = todo.pop()
            request_ids[number] = engine.submit(
                *new_request(number), updates_of[number].append
            )
        if request_ids and draw.random() < 0.08:
            number = draw.choice(list(request_ids))
            engine.cancel(request_ids[number])
            cancelled.add(number)
    interrupted = 0
    for number, updates in enumerate(updates_of):
        assert updates[-1].finish
        assert not any(update.finish for update in updates[:-1])
        alone = list(engine.reply(*new_request(number)))
        if updates[-1].finish == 'cancelled':
            assert number in cancelled
            interrupted += 1
            assert updates[:-1] == alone[: len(updates) - 1]
        else:
            assert updates == alone
    return interrupted


LENGTHS = (1, 2, 15, 16, 17, 31, 33, 40)


@pytest.mark.parametrize('seed', range(3))
def test_random_schedules_change_no_reply_and_leak_no_slot(engine, seed):
    before = engine.stats().compilations
    run_schedule(engine, seed)
    assert engine.stats().compilations == before


@pytest.mark.slow
def test_many_random_schedules(engine):
    interrupted = sum(run_schedule(engine, seed) for seed in range(100, 120))
    assert interrupted > 5


def test_a_reply_is_the_same_in_every_slot(engine):
    together = engine.complete([PROMPTS[1]] * 4, DRAWN)
    assert together == [together[0]] * 4


def test_a_prefix_found_again_changes_nothing(model, params):
    with_cache = new_engine(model, params, prefix_bytes=2**20)
    without = new_engine(model, params, prefix_bytes=0)
    prompt = PROMPTS[3]  # 51 tokens: three whole chunks
    first, again, grown = (
        with_cache.complete([p], DRAWN)[0] for p in (prompt, prompt, prompt + [4] * 5)
    )
    assert with_cache.stats().cached_tokens == 48 + 48
    assert first == again == without.complete([prompt], DRAWN)[0]
    assert grown == without.complete([prompt + [4] * 5], DRAWN)[0]
    assert without.stats().cached_tokens == 0


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['whole', 'int8 cache', 'draft', 'bfloat16'])
def test_long_and_short_neighbours_change_no_bit_of_the_optimised_program(kind):
    """Other tests compile as little as they can; this is what users run.

    Whether a page is read depends on the neighbours: three of 128 places.
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
    text = lambda length: rng.integers(3, helpers.VOCAB, length).tolist()
    how = never_ending(SamplingParameters(max_tokens=40, logprobs=20, seed=3))
    prompt = text(100)  # the reply crosses into the second page
    alone = engine.complete([prompt], how)[0]
    for lengths in ([250, 5, 130], [20, 20, 20]):
        others = [text(length) for length in lengths]
        assert engine.complete([*others, prompt], how)[-1] == alone


def test_a_long_prompt_does_not_stall_running_replies(engine):
    running, long = [], []
    engine.submit(
        [5, 6], never_ending(SamplingParameters(max_tokens=30)), running.append
    )
    for _ in range(4):
        engine.step()
    engine.submit([*range(40, 90)], never_ending(GREEDY), long.append)
    before = len(running)
    while not long:
        engine.step()
    # Four chunks to read, and a token of the other in each step.
    assert len(running) - before >= 4


# ---- parameters


@pytest.mark.slow
def test_whole_replies_leave_no_slot_empty(model, params, monkeypatch):
    """Steps are as few as the slots allow, and the replies as ever."""
    engine = new_engine(model, params, slots=16)
    steps, decode = [], engine._runner.decode
    monkeypatch.setattr(
        engine._runner, 'decode', lambda *args: steps.append(0) or decode(*args)
    )
    four = never_ending(SamplingParameters(max_tokens=4))
    prompts = [[5 + place, 6, 7] for place in range(48)]
    apart = [engine.complete([prompt], four)[0] for prompt in prompts]
    del steps[:]
    assert engine.complete(prompts, four) == apart
    # Three replies to a slot; the next begins two steps after the last has ended.
    assert len(steps) <= 3 * 4 + 2 * 2


def test_seeds_make_replies(engine):
    how = [SamplingParameters(max_tokens=12, seed=seed) for seed in (1, 2, 1)]
    rows = [ids(reply) for reply in engine.complete([PROMPTS[1]] * 3, how)]
    assert rows[0] == rows[2] != rows[1]


def test_biases_force_and_forbid(engine):
    forced = SamplingParameters(max_tokens=5, logit_bias={9: 1000.0})
    assert ids(engine.complete([PROMPTS[1]], forced)[0]) == [9] * 5
    free = ids(engine.complete([PROMPTS[1]], never_ending(GREEDY))[0])
    banned = SamplingParameters(
        temperature=0.0, max_tokens=10, logit_bias={free[0]: -1000.0, EOS: -1000.0}
    )
    assert free[0] not in ids(engine.complete([PROMPTS[1]], banned)[0])


def test_penalties_count_the_reply_and_the_prompt(engine):
    once = SamplingParameters(max_tokens=20, temperature=0.0, presence_penalty=100.0)
    row = ids(engine.complete([PROMPTS[1]], once)[0])
    assert len(set(row)) == len(row)
    forced = dict(max_tokens=3, temperature=0.0, logit_bias={9: 1000.0})
    assert ids(engine.complete([[9, 4]], SamplingParameters(**forced))[0]) == [9, 9, 9]


def test_grammars_compile_nothing_and_whoever_waits_for_their_ends_goes_on(
    model, params
):
    engine = new_engine(model, params, slots=1)
    before = engine.stats().compilations
    how = [SamplingParameters(max_tokens=10, grammar=Even()) for _ in range(3)]
    replies = engine.complete([PROMPTS[1]] * 3, how)
    assert [ids(reply) for reply in replies] == [h.grammar.taken for h in how]
    assert [len(reply.tokens) for reply in replies] == [4] * 3
    assert engine.stats().compilations == before


def test_a_grammar_rules_its_own_reply_alone(engine):
    grammar = Even()
    how = [
        SamplingParameters(max_tokens=10, seed=3, grammar=grammar),
        SamplingParameters(max_tokens=10, seed=3),
    ]
    constrained, free = engine.complete([PROMPTS[1]] * 2, how)
    assert ids(constrained) == grammar.taken and len(grammar.taken) == 4
    assert all(token % 2 == 0 for token in grammar.taken)
    assert constrained.finish == 'stop'
    assert free == engine.complete([PROMPTS[1]], how[1])[0]
    assert any(token % 2 for token in ids(free))


# ---- ends


def test_eos_and_stop_tokens_end_a_reply(engine):
    row = ids(engine.complete([PROMPTS[1]], never_ending(GREEDY))[0])
    at = row.index(row[4])
    how = never_ending(GREEDY)
    stopped = SamplingParameters(**{**vars(how), 'stop_tokens': (row[4],)})
    reply = engine.complete([PROMPTS[1]], stopped)[0]
    assert (ids(reply), reply.finish, reply.stopped_by) == (row[:at], 'stop', row[4])
    assert reply.ending.id == row[4] and reply.ending.logprob < 0
    forced = SamplingParameters(max_tokens=5, logit_bias={EOS: 1000.0}, logprobs=0)
    reply = engine.complete([PROMPTS[1]], forced)[0]
    assert (reply.text, reply.finish, reply.stopped_by) == ('', 'stop', None)
    assert reply.ending.id == EOS and reply.ending.logprob < 0


def test_stop_strings_end_a_reply_and_are_not_in_it(engine):
    whole = engine.complete([PROMPTS[1]], never_ending(GREEDY))[0]
    stop = whole.text[3:6]
    cut = whole.text.index(stop)
    how = SamplingParameters(**{**vars(never_ending(GREEDY)), 'stop': (stop,)})
    reply = engine.complete([PROMPTS[1]], how)[0]
    assert (reply.text, reply.stopped_by) == (whole.text[:cut], stop)
    assert reply.tokens == whole.tokens[:cut]


@pytest.mark.parametrize('length', [CONTEXT - 3, CONTEXT - 1])
def test_prompt_and_reply_fill_the_context_exactly(engine, full_forward, length):
    prompt = [4] * length
    how = SamplingParameters(**{**vars(never_ending(GREEDY)), 'max_tokens': 1000})
    reply = engine.complete([prompt], how)[0]
    assert reply.finish == 'length'
    assert len(reply.tokens) == CONTEXT - length
    scores = full_forward(prompt + ids(reply))[length - 1 : -1]
    np.testing.assert_allclose(
        [token.logprob for token in reply.tokens],
        [row[token] for row, token in zip(scores, ids(reply), strict=True)],
        atol=2e-4,
    )


# ---- many devices


@pytest.mark.parametrize('tensor', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_model_split_over_devices_says_the_same(model, params, engine, tensor):
    if tensor == 8:  # eight heads, each on its own device; key heads stay whole
        model = helpers.model_settings(num_heads=8, num_kv_heads=4, context=CONTEXT)
        params = random_params(model)
        engine = new_engine(model, params)
    mesh = helpers.mesh_of(tensor=tensor)
    place = lambda leaf, axes: jax.device_put(
        np.asarray(leaf), NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh))
    )
    split = jax.tree.map(place, params, gpt.param_axes(model))
    up = split['layers']['mlp']['up']
    assert up.addressable_shards[0].data.size == up.size // tensor
    many = new_engine(model, split)
    before = many.stats().compilations
    ours, alone = (e.complete(PROMPTS, DRAWN) for e in (many, engine))
    constrained = dataclasses.replace(DRAWN, grammar=Even())
    assert len(many.complete([PROMPTS[1]], constrained)[0].tokens) == 4
    assert many.stats().compilations == before
    for mine, theirs in zip(ours, alone, strict=True):
        assert ids(mine) == ids(theirs)
        np.testing.assert_allclose(
            [t.logprob for t in mine.tokens],
            [t.logprob for t in theirs.tokens],
            atol=1e-4,
        )
