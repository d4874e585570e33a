"""The state that all requests share: models, what runs, whether the end is near."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from gptjax.core.console import UserError
from gptjax.infer.request import ContextOverflow, EngineStopped, QueueFull
from gptjax.serve import engine_thread
from gptjax.serve.api_errors import ApiError, bad_request
from gptjax.serve.engine_thread import Running
from gptjax.serve.protocol import Call, Served
from gptjax.serve.telemetry import Telemetry

RETRY_LOADING = 5  # seconds
RETRY_FULL = 1
RETRY_DRAINING = 10
POLL_SECONDS = 0.05


@dataclass
class Service:
    """Admits calls to the engines and ends them.

    models: by id, the first is the default; empty while they load.
    time_limit: seconds that a request may take.
    most_replies: that one request may ask for: what slots and queue hold.
    draining: no new requests.
    """

    models: dict[str, Served] = field(default_factory=dict)
    time_limit: float = 300.0
    most_replies: int = 72
    draining: bool = False
    calls: set[Running] = field(default_factory=set)

    def __post_init__(self):
        self.telemetry = Telemetry(self.models)
        self._schema_thread = ThreadPoolExecutor(1, 'schemas')
        self._schemas = 0  # calls that wait for it

    def check_ready(self, model: Served | None = None) -> None:
        """Returns if this model can answer now; without one, if any can.

        Raises:
            ApiError: 503.
        """
        if self.draining:
            raise _later('the server is shutting down', 'draining', RETRY_DRAINING)
        if not self.models:
            raise _later('the model is loading', 'loading', RETRY_LOADING)
        asked = [model] if model else self.models.values()
        failures = [one.engine.failure for one in asked]
        if all(failures):
            raise ApiError(503, failures[0], 'engine_failed', retry=False)

    def failed(self) -> dict[str, str]:
        """The models whose engine has failed, and why."""
        failures = {name: one.engine.failure for name, one in self.models.items()}
        return {name: failure for name, failure in failures.items() if failure}

    async def understand(self, understand: Callable, body: dict) -> Call:
        """`understand(body, models)`, off the event loop: long texts take a while.

        Schemas may take seconds. They are compiled one after another on a thread of
        their own, so that they keep no other call waiting.

        Raises:
            ApiError: what `understand` raises; 503 as many schemas wait as may.
        """
        if not body.get('response_format'):
            return await asyncio.to_thread(understand, body, self.models)
        if self._schemas >= self.most_replies:
            raise _later('the server is full', 'full', RETRY_FULL)
        self._schemas += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._schema_thread, understand, body, self.models
            )
        finally:
            self._schemas -= 1

    def begin(self, call: Call) -> Running:
        """Submits a call; it has to be handed to `end`.

        Raises:
            ApiError: 503 the queue is full, or the engine has failed; 400 the
                context is too short, or the call can never fit.
        """
        self.check_ready(call.model)
        most = self.most_replies
        if len(call.prompts) > most:
            fix = f'it asks for {len(call.prompts)} replies: ask for {most} replies'
            raise bad_request(call.param, f'{fix} at most at once')
        begun = Running(call, self.telemetry)
        try:
            begun.submit()
        except QueueFull:
            raise _later('the server is full', 'full', RETRY_FULL) from None
        except EngineStopped as error:
            raise ApiError(503, str(error), 'engine_failed', retry=False) from error
        except ContextOverflow as error:
            raise ApiError(
                400, str(error), 'context_length_exceeded', call.param
            ) from error
        except UserError as error:
            raise bad_request(None, str(error)) from error
        self.calls.add(begun)
        return begun

    def end(self, ended: Running) -> None:
        """Frees what a call still has; every call comes here."""
        ended.cancel()
        self.calls.discard(ended)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Takes no more requests, and returns when those that run have ended.

        After `seconds`, or at once when `hurry` is set, they are stopped.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.calls and loop.time() < end and not hurry.is_set():
            await asyncio.sleep(POLL_SECONDS)
        for call in list(self.calls):
            call.stop(engine_thread.drained)


def _later(message: str, code: str, seconds: int) -> ApiError:
    return ApiError(
        503, f'{message}: try again in {seconds} s', code, retry_after=seconds
    )
