"""/v1/chat/completions and /v1/completions: a call's answer, whole or as a stream."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import ModuleType

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gptjax.infer.request import Update, join_updates
from gptjax.serve import engine_thread
from gptjax.serve.admission import Service
from gptjax.serve.api_errors import ApiError
from gptjax.serve.engine_thread import Running
from gptjax.serve.protocol import Call, parse_json
from gptjax.serve.request_body import read_body

PING_SECONDS = 15.0  # without anything to tell, after which a stream shows it lives
TAKEN_SECONDS = 30.0  # within which one piece of a stream has to be taken

EVENT_STREAM = {
    'Content-Type': 'text/event-stream; charset=utf-8',
    'Cache-Control': 'no-store',
    'X-Accel-Buffering': 'no',  # a proxy is not to collect the pieces
}


def endpoint(
    service: Service, name: str, understand: Callable, replies: ModuleType
) -> Callable[[Request], Awaitable]:
    """The handler of one of the two.

    Args:
        service: of the server.
        name: of the endpoint in the metrics.
        understand: (body, models) -> Call.
        replies: `chat_replies` or `text_replies`.
    """

    async def handle(request: Request):
        began = time.monotonic()

        def count(outcome: str) -> None:
            service.telemetry.request(name, outcome, time.monotonic() - began)

        try:
            service.check_ready()
            body = parse_json(await read_body(request))
            call = await service.understand(understand, body)
            begun = service.begin(call)
        except ApiError as error:
            count('busy' if error.status == 503 else 'refused')
            raise
        except Exception:
            count('failed')
            raise
        envelope = _envelope(call, replies)
        answer = _stream if call.stream else _whole
        return answer(service, begun, call, replies, envelope, count)

    return handle


def _envelope(call: Call, replies: ModuleType) -> dict:
    """What the answer and every chunk of it begin with."""
    return dict(
        id=f'{replies.PREFIX}{uuid.uuid4().hex}',
        object=replies.PART if call.stream else replies.WHOLE,
        created=int(time.time()),
        model=call.model.id,
        system_fingerprint=call.model.engine.fingerprint,
    )


def _usage(call: Call, drawn: int) -> dict:
    return dict(
        prompt_tokens=call.prompt_tokens,
        completion_tokens=drawn,
        total_tokens=call.prompt_tokens + drawn,
    )


def _drawn(update: Update) -> int:
    """The tokens of an update, with the one that ended the reply."""
    return len(update.tokens) + (update.ending is not None)


@asynccontextmanager
async def _watched(service, begun: Running, receive: Receive, count):
    """While a call runs: the client's leaving and the time limit stop it.

    Counts how it ended, and frees its slots whatever happens.
    """
    loop = asyncio.get_running_loop()

    async def watch():
        while (await receive())['type'] != 'http.disconnect':
            pass
        begun.stop(engine_thread.gone)

    watching = asyncio.create_task(watch())
    limit = loop.call_later(service.time_limit, begun.stop, engine_thread.time_limit)
    outcome = 'failed'
    try:
        yield
        outcome = 'completed'
    except ApiError as error:
        outcome = OUTCOMES.get(error.code, 'failed')
        raise
    finally:
        limit.cancel()
        watching.cancel()
        service.end(begun)
        count(outcome)


OUTCOMES = dict(
    gone='gone', slow_reader='slow', time_limit='time_limit', draining='drained'
)
NOBODY_READS = ('gone', 'slow_reader')


# ---- whole --------------------------------------------------------------------


def _whole(service, begun, call, replies, envelope, count):
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with _watched(service, begun, receive, count):
                told = [[] for _ in call.prompts]
                left = len(told)
                while left:
                    index, update = await begun.next()
                    told[index].append(update)
                    left -= update.finish is not None
                choices = [
                    replies.choice(call, index, join_updates(updates))
                    for index, updates in enumerate(told)
                ]
        except ApiError as error:
            if error.code != 'gone':
                await error.response()(scope, receive, send)
            return
        drawn = sum(_drawn(update) for updates in told for update in updates)
        content = dict(envelope, choices=choices, usage=_usage(call, drawn))
        await JSONResponse(content)(scope, receive, send)

    return respond


# ---- a stream -----------------------------------------------------------------


def _stream(service, begun, call, replies, envelope, count):
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(k.lower().encode(), v.encode()) for k, v in EVENT_STREAM.items()]
        start = dict(type='http.response.start', status=200, headers=headers)

        async def write(text: str, more: bool = True) -> None:
            message = dict(
                type='http.response.body', body=text.encode(), more_body=more
            )
            try:
                async with asyncio.timeout(TAKEN_SECONDS):
                    await send(message)
            except TimeoutError:
                raise engine_thread.slow_reader() from None

        try:
            async with _watched(service, begun, receive, count):
                await send(start)
                async for event in _events(begun, call, replies, envelope):
                    begun.check()
                    await write(event)
                await write(DONE, more=False)
        except ApiError as error:
            if error.code in NOBODY_READS:
                return
            with suppress(ApiError):  # nor is this read
                await write(_event(error.body()))
                await write(DONE, more=False)

    return respond


DONE = 'data: [DONE]\n\n'


async def _events(begun, call, replies, envelope) -> AsyncIterator[str]:
    """The stream but for its end, as server-sent events."""
    if call.include_usage:
        envelope = dict(envelope, usage=None)

    def events(choices):
        return ''.join(_event(dict(envelope, choices=[choice])) for choice in choices)

    left = set(range(len(call.prompts)))
    for index in sorted(left):
        if opening := replies.opening(call, index):
            yield events(opening)
    drawn = 0
    length = [0] * len(call.prompts)
    while left:
        try:
            async with asyncio.timeout(PING_SECONDS):
                index, update = await begun.next()
        except TimeoutError:
            yield ': ping\n\n'
            continue
        if told := replies.parts(call, index, update, length[index]):
            yield events(told)
        drawn += _drawn(update)
        length[index] += len(update.text)
        if update.finish:
            left.discard(index)
    if call.include_usage:
        usage = _usage(call, drawn)
        yield _event(dict(envelope, choices=[], usage=usage))


def _event(content: dict) -> str:
    text = json.dumps(content, ensure_ascii=False, separators=(',', ':'))
    return f'data: {text}\n\n'
