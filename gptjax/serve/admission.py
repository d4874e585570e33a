"""Admission of requests to the engines, and the state of running requests."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from gptjax.core.console import UserError
from gptjax.infer.request import ContextOverflow, EngineStopped, QueueFull, Update
from gptjax.serve.api_errors import ApiError, bad_request
from gptjax.serve.api_requests import GenerationRequest, ServedModel
from gptjax.serve.schemas import GenerationFields
from gptjax.serve.telemetry import Telemetry

# Why the server refuses a request, and after how many seconds a client may try again.
BUSY = dict(
    loading=('the model is loading', 5),
    full=('the server is full', 1),
    draining=('the server is shutting down', 10),
)
POLL_SECONDS = 0.05
MAX_UNREAD_UPDATES = 2048  # of one request; with more, the server drops the client

# Why a request is stopped before the replies have ended. Each call makes a new error,
# because an error that is raised twice keeps the stack frames of both times.
client_gone = partial(ApiError, 499, 'the client went away', 'gone')
slow_reader = partial(
    ApiError, 408, 'the stream was not read for too long', 'slow_reader', retry=False
)
time_limit = partial(
    ApiError,
    504,
    "the server's time limit for a request has passed: ask for fewer tokens",
    'time_limit',
    retry=False,
)
drained = partial(
    ApiError, 503, BUSY['draining'][0], 'draining', retry_after=BUSY['draining'][1]
)


class RunningRequest:
    """Submits the replies of a request to the engine and returns updates in order.

    All methods run on the event loop; the engine's thread calls only the listeners,
    which never block. More than `MAX_UNREAD_UPDATES` unread updates stop the request.
    """

    def __init__(self, request: GenerationRequest, telemetry: Telemetry):
        self.request = request
        self.num_unfinished = len(request.prompts)
        self._engine = request.model.engine
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        self._updates = asyncio.Queue()
        self._request_ids = []
        self._stop_reason = None  # returns the ApiError with which it was stopped

    def submit(self) -> None:
        """Submits all replies or, if `Engine.submit` raises, none."""
        prompts, parameters = self.request.prompts, self.request.parameters
        try:
            for index, reply in enumerate(zip(prompts, parameters, strict=True)):
                request_id = self._engine.submit(*reply, self._make_listener(index))
                self._request_ids.append(request_id)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancels the replies that have not ended, which frees slots of the engine."""
        if self.num_unfinished:
            for request_id in self._request_ids:
                self._engine.cancel(request_id)

    def stop(self, reason: Callable[[], ApiError]) -> None:
        """Cancels the replies; `next_update` then raises `reason()`."""
        if self.num_unfinished and self._stop_reason is None:
            self._stop_reason = reason
            self.cancel()
            self._updates.put_nowait((None, None))  # wakes `next_update`

    def raise_if_stopped(self) -> None:
        if self._stop_reason:
            raise self._stop_reason()

    async def next_update(self) -> tuple[int, Update]:
        """(index of the reply, update); raises ApiError after a `stop`."""
        # A backlog of updates must not delay a disconnect or the time limit.
        await asyncio.sleep(0)
        self.raise_if_stopped()
        index, update = await self._updates.get()
        self.raise_if_stopped()
        if update.finish == 'error':
            raise ApiError(500, str(update.error), 'engine_failed')
        if update.finish == 'cancelled':
            raise drained()
        grammar = self.request.parameters[index].grammar
        if update.finish and grammar is not None and grammar.failure:
            message = f'response_format: {grammar.failure}'
            raise ApiError(500, message, 'schema_too_complex', retry=False)
        self.num_unfinished -= update.finish is not None
        return index, update

    def _make_listener(self, index: int) -> Callable[[Update], None]:
        last_time, is_first = time.monotonic(), True

        def listen(update: Update) -> None:
            nonlocal last_time, is_first
            if update.tokens:
                now, model = time.monotonic(), self.request.model.id
                self._telemetry.count_text(model, now - last_time, is_first)
                last_time, is_first = now, False
            with suppress(RuntimeError):  # the event loop has ended, and its clients
                self._loop.call_soon_threadsafe(self._add_update, index, update)

        return listen

    def _add_update(self, index: int, update: Update) -> None:
        if self._stop_reason:
            return
        self._updates.put_nowait((index, update))
        if self._updates.qsize() > MAX_UNREAD_UPDATES:
            self.stop(slow_reader)


@dataclass
class ServerState:
    """The state that all requests share: the models and the running requests.

    The first of `models` is the default; the dict is empty while they load.
    """

    models: dict[str, ServedModel] = field(default_factory=dict)
    time_limit: float = 300.0  # seconds that a request may take
    max_replies: int = 72  # of one request: slots + queue
    draining: bool = False  # admits no new requests
    running: set[RunningRequest] = field(default_factory=set)

    def __post_init__(self):
        self.telemetry = Telemetry(self.models)
        self._schema_thread = ThreadPoolExecutor(1, 'schemas')
        self._num_waiting_schemas = 0

    def check_ready(self, model: ServedModel | None = None) -> None:
        """Raises ApiError 503 if the model (by default: every model) cannot reply."""
        if self.draining:
            raise _retry_later('draining')
        if not self.models:
            raise _retry_later('loading')
        models = [model] if model else self.models.values()
        failures = [model.engine.failure for model in models]
        if all(failures):
            raise ApiError(503, failures[0], 'engine_failed', retry=False)

    def failures(self) -> dict[str, str]:
        """The reason of the failure by the ids of models whose engine has failed."""
        failures = {name: model.engine.failure for name, model in self.models.items()}
        return {name: failure for name, failure in failures.items() if failure}

    async def parse(
        self, parse_request: Callable, body: GenerationFields
    ) -> GenerationRequest:
        """`parse_request(body, models)`, on a thread: long texts take a while.

        Compiling a JSON schema may take seconds. One thread compiles all schemas, so
        that other requests do not wait; ApiError 503 if too many schemas wait.
        """
        if body.response_format is None:
            return await asyncio.to_thread(parse_request, body, self.models)
        if self._num_waiting_schemas >= self.max_replies:
            raise _retry_later('full')
        self._num_waiting_schemas += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._schema_thread, parse_request, body, self.models
            )
        finally:
            self._num_waiting_schemas -= 1

    def start(self, request: GenerationRequest) -> RunningRequest:
        """Submits a request to the engine; the caller must call `end` later."""
        self.check_ready(request.model)
        num_replies, limit = len(request.prompts), self.max_replies
        if num_replies > limit:
            message = f'it asks for {num_replies} replies: ask for {limit} replies'
            raise bad_request(request.prompt_field, f'{message} at most at once')
        running = RunningRequest(request, self.telemetry)
        try:
            running.submit()
        except QueueFull:
            raise _retry_later('full') from None
        except EngineStopped as error:
            raise ApiError(503, str(error), 'engine_failed', retry=False) from error
        except ContextOverflow as error:
            raise ApiError(
                400, str(error), 'context_length_exceeded', request.prompt_field
            ) from error
        except UserError as error:
            raise bad_request(None, str(error)) from error
        self.running.add(running)
        return running

    def end(self, running: RunningRequest) -> None:
        running.cancel()
        self.running.discard(running)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Admits no more requests, and returns when the running ones have ended.

        Stops them after `seconds`, or as soon as `hurry` is set.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.running and loop.time() < end and not hurry.is_set():
            await asyncio.sleep(POLL_SECONDS)
        for running in list(self.running):
            running.stop(drained)


def _retry_later(code: str) -> ApiError:
    message, seconds = BUSY[code]
    message = f'{message}: try again in {seconds} s'
    return ApiError(503, message, code, retry_after=seconds)
