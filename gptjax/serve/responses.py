"""Responses of /v1/chat/completions and /v1/completions, whole or as a stream."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gptjax.infer.request import Reply, Token, Update, join_updates
from gptjax.serve import admission, schemas
from gptjax.serve.admission import RunningRequest
from gptjax.serve.api_errors import ApiError
from gptjax.serve.api_requests import GenerationRequest, read_body

PING_SECONDS = 15.0  # without an event, after which a stream sends a comment
SEND_SECONDS = 30.0  # within which a client has to accept one write to a stream
LOWEST_LOGPROB = -9999.0  # stands for -inf, which JSON does not have

STREAM_HEADERS = {
    b'content-type': b'text/event-stream; charset=utf-8',
    b'cache-control': b'no-store',
    b'x-accel-buffering': b'no',  # a proxy must not collect the events
}
LAST_EVENT = 'data: [DONE]\n\n'

# How a request ended, for the metrics, by the code of the error.
OUTCOMES = dict(
    gone='gone', slow_reader='slow', time_limit='time_limit', draining='drained'
)


# ---- the two kinds of responses -----------------------------------------------


class ChatAnswer:
    """The response of /v1/chat/completions to one request, whole or in chunks."""

    id_prefix, object_names = 'chatcmpl-', ('chat.completion', 'chat.completion.chunk')
    whole_class, chunk_class = schemas.ChatCompletion, schemas.ChatChunk

    def __init__(self, request: GenerationRequest):
        self.request = request
        self.envelope = dict(  # the first fields of the response and of every chunk
            id=f'{self.id_prefix}{uuid.uuid4().hex}',
            object=self.object_names[request.stream],
            created=int(time.time()),
            model=request.model.id,
            system_fingerprint=request.model.engine.fingerprint,
        )

    def first_choices(self, index: int) -> list[schemas.Choice]:
        """The choices of the chunks before the first token."""
        return [self._chunk(index, dict(role='assistant', content='', refusal=None))]

    def update_choices(
        self, index: int, update: Update, offset: int
    ) -> list[schemas.Choice]:
        """The choices of an update's chunks; `offset` characters came before."""
        choices = []
        if update.text or (self.request.logprobs and update.tokens):
            logprobs = self._logprobs(update.tokens)
            choices.append(self._chunk(index, dict(content=update.text), logprobs))
        if update.finish:
            choices.append(self._chunk(index, {}, finish_reason=update.finish))
        return choices

    def whole_choice(self, index: int, reply: Reply) -> schemas.Choice:
        return schemas.ChatChoice(
            index=index,
            message=dict(role='assistant', content=reply.text, refusal=None),
            logprobs=self._logprobs(reply.tokens),
            finish_reason=reply.finish,
        )

    def usage(self, num_tokens: int) -> schemas.Usage:
        num_prompt_tokens = self.request.num_prompt_tokens
        return schemas.Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=num_tokens,
            total_tokens=num_prompt_tokens + num_tokens,
        )

    def _chunk(self, index, delta, logprobs=None, finish_reason=None):
        return schemas.ChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )

    def _logprobs(self, tokens):
        if not self.request.logprobs:
            return None
        tokenizer = self.request.model.tokenizer
        content = [describe_chat_token(tokenizer, token) for token in tokens]
        return schemas.ChatLogprobs(content=content, refusal=None)


class CompletionAnswer(ChatAnswer):
    """The response of /v1/completions to one request, whole or in chunks.

    The listed tokens include the one that ended the reply: lm-evaluation-harness draws
    one token after a prompt, and leaves out the last that is listed.
    """

    id_prefix, object_names = 'cmpl-', ('text_completion', 'text_completion')
    whole_class = chunk_class = schemas.Completion

    def first_choices(self, index):
        """The echoed prompt; with log-probabilities it comes with the first update."""
        if not self.request.echoed_texts or self.request.logprobs:
            return []
        return [self._choice(index, self.request.echoed_texts[index])]

    def update_choices(self, index, update, offset):
        request, choices = self.request, []
        prompt = request.echoed_texts[index] if request.echoed_texts else ''
        if request.echoed_texts and request.logprobs and update.prompt is not None:
            choices.append(self._choice(index, prompt, update.prompt))
        if update.text or update.finish or (request.logprobs and update.tokens):
            tokens, offset = _all_tokens(update), offset + len(prompt)
            choices.append(
                self._choice(index, update.text, tokens, offset, update.finish)
            )
        return choices

    def whole_choice(self, index, reply):
        text, tokens = reply.text, _all_tokens(reply)
        if self.request.echoed_texts:
            text = self.request.echoed_texts[index] + text
            tokens = (*(reply.prompt or ()), *tokens)
        return self._choice(index, text, tokens, finish_reason=reply.finish)

    def _choice(self, index, text, tokens=(), offset=0, finish_reason=None):
        logprobs = None
        if self.request.logprobs:
            tokenizer = self.request.model.tokenizer
            logprobs = describe_text_tokens(tokenizer, tokens, offset)
        return schemas.TextChoice(
            index=index, text=text, logprobs=logprobs, finish_reason=finish_reason
        )


def _all_tokens(reply: Update | Reply) -> tuple[Token, ...]:
    """The tokens and, where there is one, the token that ended the reply."""
    return reply.tokens if reply.ending is None else (*reply.tokens, reply.ending)


# ---- tokens -------------------------------------------------------------------


def token_text(tokenizer, token: int) -> str:
    r"""A token's text, the name of a special token, or bytes that are not whole text.

    For example 'Hi', '<eos>', 'bytes:\xe2\x96'.
    """
    content = tokenizer.bytes_of(token)
    if not content:
        for name, special in tokenizer.specials.items():
            if special == token:
                return name
    try:
        return content.decode()
    except UnicodeDecodeError:
        return 'bytes:' + ''.join(f'\\x{byte:02x}' for byte in content)


def describe_chat_token(tokenizer, token: Token) -> schemas.TokenLogprob:
    """An entry of a chat choice's `logprobs.content`."""

    def describe(token_id, logprob, **fields):
        return schemas.TokenLogprob(
            token=token_text(tokenizer, token_id),
            logprob=max(logprob, LOWEST_LOGPROB),
            bytes=list(tokenizer.bytes_of(token_id)) or None,
            **fields,
        )

    alternatives = [describe(*alternative) for alternative in token.top]
    return describe(token.id, token.logprob, top_logprobs=alternatives)


def describe_text_tokens(
    tokenizer, tokens: tuple[Token, ...], offset: int = 0
) -> schemas.TextLogprobs:
    """A completion choice's `logprobs`; `offset` characters come before the tokens.

    The first token of a prompt has no log-probability: null.
    """
    stream = tokenizer.stream()
    offsets, logprobs, alternatives = [], [], []
    for token in tokens:
        offsets.append(offset)
        offset += len(stream.push(token.id))
        if token.logprob is None:
            logprobs.append(None)
            alternatives.append(None)
            continue
        logprobs.append(max(token.logprob, LOWEST_LOGPROB))
        by_text = {}  # where two alternatives have the same text, the likelier
        for token_id, logprob in (*token.top, (token.id, token.logprob)):
            text = token_text(tokenizer, token_id)
            by_text.setdefault(text, max(logprob, LOWEST_LOGPROB))
        alternatives.append(by_text)
    return schemas.TextLogprobs(
        tokens=[token_text(tokenizer, token.id) for token in tokens],
        token_logprobs=logprobs,
        top_logprobs=alternatives,
        text_offset=offsets,
    )


# ---- the endpoints ------------------------------------------------------------


async def generate(
    http_request: Request,
    name: str,
    request_class: type[schemas.Schema],
    parse_request: Callable,
    answer_class: type[ChatAnswer],
) -> Callable:
    """Starts a request for replies; returns the response, an ASGI application.

    Args:
        name: the endpoint's name in the metrics.
        parse_request: (body, models) -> `GenerationRequest`.
    """
    start, state = time.monotonic(), http_request.app.state.server

    def count(outcome: str) -> None:
        state.telemetry.count_request(name, outcome, time.monotonic() - start)

    try:
        state.check_ready()
        body = await read_body(http_request, request_class)
        request = await state.parse(parse_request, body)
        running = state.start(request)
    except ApiError as error:
        count('busy' if error.status == 503 else 'refused')
        raise
    except Exception:
        count('failed')
        raise
    send_answer = _send_stream if request.stream else _send_whole
    return partial(send_answer, state, running, answer_class(request), count)


@asynccontextmanager
async def _watch(state, running: RunningRequest, receive: Receive, count):
    """Stops a request when the client leaves or the time limit passes.

    Counts how the request ended, and frees the slots whatever happens.
    """

    async def watch_client():
        while (await receive())['type'] != 'http.disconnect':
            pass
        running.stop(admission.client_gone)

    watcher = asyncio.create_task(watch_client())
    loop = asyncio.get_running_loop()
    timer = loop.call_later(state.time_limit, running.stop, admission.time_limit)
    outcome = 'failed'
    try:
        yield
        outcome = 'completed'
    except ApiError as error:
        outcome = OUTCOMES.get(error.code, 'failed')
        raise
    finally:
        timer.cancel()
        watcher.cancel()
        state.end(running)
        count(outcome)


async def _send_whole(
    state, running, answer, count, scope: Scope, receive: Receive, send: Send
) -> None:
    updates = [[] for _ in running.request.prompts]
    try:
        async with _watch(state, running, receive, count):
            while running.num_unfinished:
                index, update = await running.next_update()
                updates[index].append(update)
            choices = [
                answer.whole_choice(index, join_updates(reply_updates))
                for index, reply_updates in enumerate(updates)
            ]
    except ApiError as error:
        if error.code != 'gone':
            await error.response()(scope, receive, send)
        return
    usage = answer.usage(sum(len(_all_tokens(u)) for reply in updates for u in reply))
    content = answer.whole_class(**answer.envelope, choices=choices, usage=usage)
    await schemas.JsonResponse(content)(scope, receive, send)


async def _send_stream(
    state, running, answer, count, scope: Scope, receive: Receive, send: Send
) -> None:
    async def write(text: str, more: bool = True) -> None:
        message = dict(type='http.response.body', body=text.encode(), more_body=more)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)
        except TimeoutError:
            raise admission.slow_reader() from None

    headers = list(STREAM_HEADERS.items())
    try:
        async with _watch(state, running, receive, count):
            await send(dict(type='http.response.start', status=200, headers=headers))
            async for event in _events(running, answer):
                running.raise_if_stopped()
                await write(event)
            await write(LAST_EVENT, more=False)
    except ApiError as error:
        if error.code in ('gone', 'slow_reader'):  # nobody reads
            return
        with suppress(ApiError):  # the client does not read this either
            await write(_format_event(error.body()))
            await write(LAST_EVENT, more=False)


async def _events(running: RunningRequest, answer) -> AsyncIterator[str]:
    """The stream as server-sent events, without the last one."""
    request, envelope = running.request, answer.envelope
    if request.include_usage:
        envelope = dict(envelope, usage=None)

    def format_events(choices):
        chunks = (answer.chunk_class(**envelope, choices=[c]) for c in choices)
        return ''.join(map(_format_event, chunks))

    for index in range(len(request.prompts)):
        if choices := answer.first_choices(index):
            yield format_events(choices)
    num_tokens = 0
    num_characters = [0] * len(request.prompts)
    while running.num_unfinished:
        try:
            async with asyncio.timeout(PING_SECONDS):
                index, update = await running.next_update()
        except TimeoutError:
            yield ': ping\n\n'
            continue
        if choices := answer.update_choices(index, update, num_characters[index]):
            yield format_events(choices)
        num_tokens += len(_all_tokens(update))
        num_characters[index] += len(update.text)
    if request.include_usage:
        envelope['usage'] = answer.usage(num_tokens)
        yield _format_event(answer.chunk_class(**envelope, choices=[]))


def _format_event(content: BaseModel) -> str:
    return f'data: {content.model_dump_json(exclude_unset=True)}\n\n'
