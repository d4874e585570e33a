"""What is refused, who waits, who is cancelled, and what an error does."""

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
from tests.infer.engines import (
    CONTEXT,
    DRAWN,
    GREEDY,
    PROMPTS,
    never_ending,
    new_engine,
    tokenizer,
)


@pytest.mark.parametrize(
    'prompt, changes, message',
    [
        ([], dict(), 'the prompt has no tokens'),
        ([4] * CONTEXT, dict(), f'the prompt has {CONTEXT} tokens and the context'),
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
def test_what_cannot_be_done_is_refused(engine, prompt, changes, message):
    with pytest.raises(UserError, match=message):
        engine.submit(prompt, SamplingParameters(**changes), print)


def test_overflow_says_by_how_much(engine):
    with pytest.raises(ContextOverflow) as caught:
        engine.submit([4] * CONTEXT, GREEDY, print)
    assert (caught.value.prompt_tokens, caught.value.context) == (CONTEXT, CONTEXT)
    # A prompt that is only scored may fill it.
    scored = SamplingParameters(max_tokens=0, prompt_logprobs=True)
    assert len(engine.complete([[4] * CONTEXT], scored)[0].prompt) == CONTEXT


# ---- the queue, cancelling, the thread


def test_the_queue_is_bounded_and_served_in_order(model, params):
    engine = new_engine(model, params, slots=1, queue=2)
    finished = []
    for number in range(3):  # one gets the slot, two wait
        listen = lambda update, number=number: update.finish and finished.append(number)
        engine.submit([5], GREEDY, listen)
    with pytest.raises(QueueFull):
        engine.submit([5], GREEDY, print)
    while engine.step():
        pass
    assert finished == [0, 1, 2]
    engine.submit([5], GREEDY, print)


def test_whole_replies_to_more_prompts_than_the_queue_holds(model, params, engine):
    small = new_engine(model, params, queue=0)
    prompts = [[token] for token in range(2, 13)]
    assert small.complete(prompts, GREEDY) == engine.complete(prompts, GREEDY)


def test_whole_replies_by_more_slots_than_may_wait(model, params, engine):
    wide = Engine(model, params, tokenizer(), slots=66, queue=64)  # 64: as by default
    prompts = [[2 + number % 50] for number in range(140)]
    how = SamplingParameters(max_tokens=2, temperature=0.0)
    found = wide.complete(prompts, how)
    assert found[:50] == found[50:100] == engine.complete(prompts[:50], how)


def test_cancelling_frees_the_slot_before_the_next_step(engine):
    updates_of = [[] for _ in range(6)]
    how = never_ending(SamplingParameters(max_tokens=40))
    request_ids = [engine.submit([5, 6], how, updates.append) for updates in updates_of]
    for _ in range(5):
        engine.step()
    assert engine.stats().running == 4 and engine.stats().waiting == 2
    engine.cancel(request_ids[0])  # running
    engine.cancel(request_ids[5])  # waiting
    engine.cancel(12345)  # never was
    engine.step()
    assert updates_of[0][-1].finish == updates_of[5][-1].finish == 'cancelled'
    assert engine.stats().running == 4 and engine.stats().waiting == 0
    count = len(updates_of[0])
    while engine.step():
        pass
    assert len(updates_of[0]) == count  # silent from then on
    engine.cancel(request_ids[0])
    assert [updates[-1].finish for updates in updates_of[1:5]] == ['length'] * 4


def test_whoever_stops_listening_frees_the_slot(engine):
    replies = engine.reply([5], never_ending(SamplingParameters(max_tokens=40)))
    next(replies)
    assert engine.stats().running == 1
    replies.close()
    engine.step()
    assert engine.stats().running == 0


def test_the_thread_gives_the_same_replies_and_its_end_cancels_what_runs(
    model, params, engine
):
    expected = engine.complete(PROMPTS, DRAWN)
    threaded = new_engine(model, params)
    threaded.start()
    long = never_ending(SamplingParameters(max_tokens=60))
    updates = []
    try:
        for prompt, reply in zip(PROMPTS, expected, strict=True):
            texts = [update.text for update in threaded.reply(prompt, DRAWN)]
            assert ''.join(texts) == reply.text
        for _ in range(6):
            threaded.submit([5], long, updates.append)
    finally:
        threaded.close()
    assert sum(update.finish is not None for update in updates) == 6
    with pytest.raises(EngineStopped, match='closing'):
        threaded.submit([5], GREEDY, print)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_an_error_ends_every_request_and_is_reported(model, params):
    threaded = new_engine(model, params)
    updates = []

    def fail(update):
        raise ZeroDivisionError('a listener of the test')

    threaded.submit([5], GREEDY, fail)
    threaded.submit([6], GREEDY, updates.append)
    assert threaded.failure is None
    threaded.start()
    threaded._thread.join(timeout=30)
    assert (
        updates[-1].finish == 'error' and 'a listener of the test' in updates[-1].error
    )
    assert 'a listener of the test' in threaded.failure
    with pytest.raises(EngineStopped, match='a listener of the test'):
        threaded.submit([5], GREEDY, print)
    stats = threaded.stats()
    assert (stats.running, stats.waiting, stats.cache_used) == (0, 0, 0.0)
    threaded.close()
