"""The state that all requests share: models, what runs, whether the end is near."""

import asyncio
from dataclasses import dataclass, field

from gptjax.errors import UserError
from gptjax.infer.request import ContextOverflow, QueueFull
from gptjax.serve import running
from gptjax.serve.errors import ApiError, bad_request
from gptjax.serve.protocol import Call, Served
from gptjax.serve.running import Running
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
    failure: an engine's error, after which nothing can be drawn.
    """

    models: dict[str, Served] = field(default_factory=dict)
    time_limit: float = 300.0
    most_replies: int = 72
    draining: bool = False
    failure: str | None = None
    calls: set[Running] = field(default_factory=set)

    def __post_init__(self):
        self.telemetry = Telemetry(self.models)

    def check_ready(self) -> None:
        """Raises ApiError, 503: it cannot answer now."""
        if self.failure:
            raise ApiError(503, self.failure, 'engine_failed', retry=False)
        if self.draining:
            raise _later('the server is shutting down', 'draining', RETRY_DRAINING)
        if not self.models:
            raise _later('the model is loading', 'loading', RETRY_LOADING)

    def begin(self, call: Call) -> Running:
        """Submits a call; it has to be handed to `end`.

        Raises:
            ApiError: 503 the queue is full; 400 the context is too short, or the
                call can never fit.
        """
        self.check_ready()
        most = self.most_replies
        if len(call.prompts) > most:
            fix = f'it asks for {len(call.prompts)} replies: ask for {most} replies'
            raise bad_request(call.param, f'{fix} at most at once')
        begun = Running(call, self.telemetry)
        try:
            begun.submit()
        except QueueFull:
            raise _later('the server is full', 'full', RETRY_FULL) from None
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
            call.stop(running.DRAINED)


def _later(message: str, code: str, seconds: int) -> ApiError:
    return ApiError(
        503, f'{message}: try again in {seconds} s', code, retry_after=seconds
    )
