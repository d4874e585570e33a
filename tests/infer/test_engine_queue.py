"""Invalid requests, the queue, cancelling, the engine's thread, and errors in it."""

import pytest

from gptjax.core.console import UserError
from gptjax.infer.engine import Engine
from gptjax.infer.request import (
    ContextOverflow,
    EngineStopped,
    QueueFull,
    SamplingParameters,
)
from tests import helpers
from tests.infer.engines import CONTEXT, DRAWN, GREEDY, PROMPTS, change, tokenizer


@pytest.mark.parametrize(
    'prompt, changes, message',
    [
        ([], dict(), 'the prompt has no tokens'),
        ([4] * (CONTEXT + 1), dict(max_tokens=0), 'shorten it'),
        ([helpers.VOCAB], dict(), 'use 0 to'),
        ([4], dict(temperature=-1.0), 'temperature=-1.0: use a number'),
        ([4], dict(temperature=float('nan')), 'temperature=nan'),
        ([4], dict(top_p=0.0), 'top_p=0.0: use a number above 0, at most 1'),
        ([4], dict(min_p=1.5), 'min_p=1.5'),
        ([4], dict(top_k=-1), 'top_k=-1'),
        ([4], dict(repetition_penalty=0.0), 'a number from 0.01 to 100'),
        ([4], dict(presence_penalty=-101.0), 'a number from -100 to 100'),
        ([4], dict(max_tokens=-1), 'max_tokens=-1: use a number from 0'),
        ([4], dict(seed=-1), 'seed=-1'),
        ([4], dict(seed=2**32), 'seed='),
        ([4], dict(logprobs=21), 'logprobs=21'),
        ([4], dict(logit_bias={helpers.VOCAB: 1.0}), 'logit_bias has the token'),
        ([4], dict(logit_bias={3: float('nan')}), 'logit_bias of 3 is nan'),
        ([4], dict(logit_bias={3: 1001.0}), 'use a number from -1000 to 1000'),
        ([4], dict(stop=('',)), 'stop has an empty string'),
    ],
    ids=str,
)
def test_invalid_requests_are_refused(engine, prompt, changes, message):
    with pytest.raises(UserError, match=message):
        engine.submit(prompt, SamplingParameters(**changes), print)


def test_a_prompt_may_fill_the_context_only_without_a_reply(engine):
    message = f'the prompt has {CONTEXT} tokens and the context'
    with pytest.raises(ContextOverflow, match=message) as caught:
        engine.submit([4] * CONTEXT, GREEDY, print)
    assert (caught.value.prompt_tokens, caught.value.context) == (CONTEXT, CONTEXT)
    assert '--context' not in str(caught.value)  # it is that of the model
    scored = SamplingParameters(max_tokens=0, prompt_logprobs=True)
    assert len(engine.complete([[4] * CONTEXT], scored)[0].prompt) == CONTEXT


def test_a_shorter_context_than_the_models_says_how_to_raise_it(model, params):
    short = Engine(model, params, tokenizer(), context=CONTEXT - 24, slots=1)
    message = f'at most, so that a reply has room, or use --context up to {CONTEXT}'
    with pytest.raises(ContextOverflow, match=message):
        short.submit([4] * (CONTEXT - 24), GREEDY, print)


@pytest.mark.parametrize('context', (-1, 0, CONTEXT + 1))
def test_a_context_that_the_model_lacks_is_refused(model, params, context):
    with pytest.raises(UserError, match=f'^context={context}: the model has {CONTEXT}'):
        Engine(model, params, tokenizer(), context=context)


# ---- the queue, cancelling, the thread


def test_the_queue_is_bounded_and_served_in_order(one_slot):
    finished = []
    for number in range(3):  # one request gets the slot, two wait
        on_update = lambda update, n=number: update.finish and finished.append(n)
        one_slot.submit([5], GREEDY, on_update)
    with pytest.raises(QueueFull):
        one_slot.submit([5], GREEDY, print)
    while one_slot.step():
        pass
    assert finished == [0, 1, 2]


def test_complete_takes_more_prompts_than_slots_and_queue(engine, monkeypatch):
    prompts = [[token] for token in range(2, 13)]
    expected = engine.complete(prompts, GREEDY)
    monkeypatch.setattr(engine, '_max_waiting', 0)
    assert engine.complete(prompts, GREEDY) == expected


def test_cancelling_frees_the_slot_before_the_next_step(engine):
    updates_of = [[] for _ in range(6)]
    parameters = change(GREEDY, max_tokens=40)
    request_ids = [
        engine.submit([5, 6], parameters, updates.append) for updates in updates_of
    ]
    for _ in range(5):
        engine.step()
    assert engine.stats().running == 4 and engine.stats().waiting == 2
    engine.cancel(request_ids[0])  # running
    engine.cancel(request_ids[5])  # waiting
    engine.cancel(12345)  # an unknown id
    engine.step()
    assert updates_of[0][-1].finish == updates_of[5][-1].finish == 'cancelled'
    assert engine.stats().running == 4 and engine.stats().waiting == 0
    num_updates = len(updates_of[0])
    while engine.step():
        pass
    assert len(updates_of[0]) == num_updates
    engine.cancel(request_ids[0])
    assert [updates[-1].finish for updates in updates_of[1:5]] == ['length'] * 4


def test_closing_the_generator_of_a_reply_cancels_it(engine):
    updates = engine.reply([5], change(GREEDY, max_tokens=40))
    next(updates)
    assert engine.stats().running == 1
    updates.close()
    engine.step()
    assert engine.stats().running == 0


def test_the_thread_gives_the_same_replies_and_close_cancels_the_rest(
    model, params, engine
):
    expected = engine.complete(PROMPTS, DRAWN)
    threaded = Engine(model, params, tokenizer(), slots=4, chunk=16)
    threaded.start()
    updates = []
    try:
        for prompt, reply in zip(PROMPTS, expected, strict=True):
            texts = [update.text for update in threaded.reply(prompt, DRAWN)]
            assert ''.join(texts) == reply.text
        for _ in range(6):
            threaded.submit([5], change(GREEDY, max_tokens=60), updates.append)
    finally:
        threaded.close()
    assert sum(update.finish is not None for update in updates) == 6
    with pytest.raises(EngineStopped, match='closing'):
        threaded.submit([5], GREEDY, print)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_an_error_ends_every_request_and_is_reported(model, params):
    threaded = Engine(model, params, tokenizer(), slots=4, chunk=16)
    updates = []

    def fail(update):
        raise ZeroDivisionError('a callback of the test')

    threaded.submit([5], GREEDY, fail)
    threaded.submit([6], GREEDY, updates.append)
    assert threaded.failure is None
    threaded.start()
    threaded._thread.join(timeout=60)
    message = 'the engine stopped: a callback of the test'
    assert (updates[-1].finish, updates[-1].error) == ('error', message)
    assert threaded.failure == message
    with pytest.raises(EngineStopped, match=message):
        threaded.submit([5], GREEDY, print)
    stats = threaded.stats()
    assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0.0)
    threaded.close()
