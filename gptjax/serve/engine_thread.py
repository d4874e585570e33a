"""The requests of one call while they run: from the engine's thread to the loop."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from gptjax.infer.request import Update
from gptjax.serve.api_errors import ApiError
from gptjax.serve.protocol import Call
from gptjax.serve.telemetry import Telemetry

MOST_WAITING = 2048  # updates that a client may leave unread before it is dropped

# Why a call ended before its replies did, and what whoever still listens is told. A
# new error each time: one that is raised again remembers every call it was raised in.
gone = partial(ApiError, 499, 'the client went away', 'gone')
slow_reader = partial(
    ApiError, 408, 'the stream was not read for too long', 'slow_reader', retry=False
)
time_limit = partial(
    ApiError,
    504,
    "the server's time limit of a request has passed: ask for fewer tokens",
    'time_limit',
    retry=False,
)
drained = partial(
    ApiError, 503, 'the server is shutting down', 'draining', retry_after=10
)


class Running:
    """Submits a call's requests and hands out their updates, in order.

    It lives on the event loop; only `_listen` is called by the engine's thread,
    which it never makes wait. Updates that nobody reads pile up to `MOST_WAITING`,
    then the call is stopped.
    """

    def __init__(self, call: Call, telemetry: Telemetry):
        self._engine = call.model.engine
        self._telemetry = telemetry
        self._model = call.model.id
        self._loop = asyncio.get_running_loop()
        self._updates = asyncio.Queue()
        self._tickets = []
        self._call = call
        self.left = len(call.prompts)  # replies whose end `next` has not told yet
        self._stopped = None  # makes the ApiError for which it was stopped

    def submit(self) -> None:
        """Hands everything to the engine; all or nothing.

        Raises:
            EngineStopped, QueueFull, UserError: as `Engine.submit`.
        """
        requests = zip(self._call.prompts, self._call.parameters, strict=True)
        try:
            for index, (prompt, parameters) in enumerate(requests):
                listen = self._listener(index)
                ticket = self._engine.submit(prompt, parameters, listen)
                self._tickets.append(ticket)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Frees the slots; nothing where all have come to their end."""
        if self.left:
            for ticket in self._tickets:
                self._engine.cancel(ticket)

    def stop(self, reason: Callable[[], ApiError]) -> None:
        """Cancels what runs, and ends `next` with the error that `reason` makes."""
        if self.left and self._stopped is None:
            self._stopped = reason
            self.cancel()
            self._updates.put_nowait(None)

    def check(self) -> None:
        """Raises ApiError where the call was stopped."""
        if self._stopped:
            raise self._stopped()

    async def next(self) -> tuple[int, Update]:
        """(choice, update) as they come.

        Raises:
            ApiError: the call was stopped, or the engine met an error.
        """
        # Where updates have piled up, what else has happened is heard first.
        await asyncio.sleep(0)
        self.check()
        item = await self._updates.get()
        self.check()
        index, update = item
        if update.finish == 'error':
            raise ApiError(500, str(update.error), 'engine_failed')
        if update.finish == 'cancelled':
            raise drained()
        grammar = self._call.parameters[index].grammar
        if update.finish and grammar is not None and grammar.failure:
            why = f'response_format: {grammar.failure}'
            raise ApiError(500, why, 'schema_too_complex', retry=False)
        self.left -= update.finish is not None
        return index, update

    def _listener(self, index: int) -> Callable[[Update], None]:
        last = time.monotonic()
        first = True

        def listen(update: Update) -> None:
            nonlocal last, first
            now = time.monotonic()
            if update.tokens:
                self._telemetry.token(self._model, now - last, first)
                last, first = now, False
            try:
                self._loop.call_soon_threadsafe(self._put, index, update)
            except RuntimeError:  # the loop has ended, and with it who listened
                pass

        return listen

    def _put(self, index: int, update: Update) -> None:
        if self._stopped:
            return
        self._updates.put_nowait((index, update))
        if self._updates.qsize() > MOST_WAITING:
            self.stop(slow_reader)
