"""Continuous batching: many requests at once, each drawn as if it were alone.

A request waits for a free slot, has its prompt read into it a chunk at a time, and
then takes part in every decode step until it ends. A round (`step`, see `rounds`) is
one decode step and one chunk, so that a long prompt does not hold up running replies,
or a few chunks where more prompts wait than replies run.

A reply is a function of weights, prompt, parameters and seed. Draws come from the
request's seed and the token's place, chunks begin at the same places of a prompt
whatever was cached, and shapes never change: rows do not see one another.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
from ml_collections import FrozenConfigDict

from gptjax.core.console import UserError
from gptjax.infer.model_runner import Decoder, count_compilations
from gptjax.infer.request import (
    ContextOverflow,
    EngineStopped,
    QueueFull,
    Reply,
    SamplingParameters,
    Update,
    check_parameters,
    join_updates,
)
from gptjax.infer.request_state import LiveRequest
from gptjax.infer.scheduler import Rounds
from gptjax.infer.streamed_text import ReplyText
from gptjax.models.cache import empty_cache


class Stats(NamedTuple):
    """What an engine is doing, and has done since it was made."""

    running: int
    waiting: int
    slots: int
    cache_used: float  # share of the cache's places that hold a running request
    compilations: int  # of this process
    prompt_tokens: int
    cached_tokens: int  # of the prompts' tokens, found in the prefix cache
    reply_tokens: int


class Engine:
    """Draws replies to many prompts at once.

    Attributes:
        tokenizer: as given.
        context: tokens of a prompt and its reply together, at most.
        vocab_size: V.
        fingerprint: as given: what the weights are.
        trained_step: as given: the checkpoint's.
        failure: the error that stopped its thread, for ever; None: there was none.

    Args:
        settings: of the model.
        params: of the model, as trained (layers stacked), laid out on a mesh whose
            only axis above one may be 'tensor', or on one device.
        tokenizer: of the model.
        slots: requests that run at once.
        chunk: tokens of a prompt read in a round.
        queue: requests that may wait for a slot.
        prefix_bytes: memory for the beginnings of earlier prompts.
        new_cache: `empty_cache` or `empty_int8_cache`.
        convert: what is done to the weights once their layers are unstacked; see
            `quantize_params`.
        draft: (settings, params) of a smaller model of the same vocabulary that
            guesses ahead; see `gptjax.infer.speculative`.
        guesses: tokens that it guesses in a step.
        fingerprint: names the weights.
        trained_step: updates that the weights have had.
    """

    def __init__(
        self,
        settings: FrozenConfigDict,
        params,
        tokenizer,
        *,
        slots: int = 8,
        chunk: int = 64,
        queue: int = 64,
        prefix_bytes: int = 2**28,
        new_cache: Callable = empty_cache,
        convert: Callable = lambda params: params,
        draft: tuple[FrozenConfigDict, Any] | None = None,
        guesses: int = 4,
        fingerprint: str = '',
        trained_step: int = 0,
    ):
        if slots < 1:
            raise UserError(f'slots={slots}: use a positive number')
        self.tokenizer = tokenizer
        self.context = settings.context
        self.vocab_size = settings.vocab_size
        self.fingerprint = fingerprint
        self.trained_step = trained_step
        self.failure = None
        self._decoder = Decoder(
            settings,
            params,
            slots=slots,
            chunk=chunk,
            new_cache=new_cache,
            convert=convert,
            draft=draft,
            guesses=guesses,
        )
        self._rounds = Rounds(self._decoder, prefix_bytes, self._end)
        self._most_waiting = queue
        self._tickets = count(1)
        self._lock = threading.Condition()
        self._waiting = deque()
        self._cancelled = set()
        self._live = {}  # ticket -> request
        self._thread = None
        self._closing = False

    # ---- for any thread -------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        listen: Callable[[Update], None],
    ) -> int:
        """Queues a request; its ticket.

        Args:
            prompt: token ids, at least one (as a rule BOS).
            parameters: how to draw.
            listen: is called with each `Update`, on the engine's thread; an error
                in it stops the engine.

        Raises:
            EngineStopped: it has failed, or it was closed.
            QueueFull: as many wait as may.
            ContextOverflow: the prompt leaves no room.
            UserError: the prompt is empty, has a token that does not exist, or
                parameters are out of range.
        """
        check_parameters(parameters, self.vocab_size)
        prompt = tuple(int(token) for token in prompt)
        if not prompt:
            raise UserError('the prompt has no tokens: begin it with BOS')
        if not all(0 <= token < self.vocab_size for token in prompt):
            raise UserError(
                f'the prompt has a token that does not exist: use 0 to '
                f'{self.vocab_size - 1}'
            )
        room = self.context - len(prompt)
        if room < min(1, parameters.max_tokens):
            raise ContextOverflow(len(prompt), self.context)
        with self._lock:
            if self.failure or self._closing:
                raise EngineStopped(self.failure or 'the engine is closing')
            if not self._has_room():
                raise QueueFull(f'{len(self._waiting)} requests wait')
            request = LiveRequest(
                ticket=next(self._tickets),
                prompt=prompt,
                parameters=parameters,
                listen=listen,
                text=ReplyText(self.tokenizer, parameters.stop),
                max_tokens=min(parameters.max_tokens, room),
                eos_id=self.tokenizer.eos_id,
            )
            self._live[request.ticket] = request
            self._waiting.append(request)
            self._lock.notify_all()
        return request.ticket

    def cancel(self, ticket: int) -> None:
        """Ends a request before the next decode step; nothing if it has ended."""
        with self._lock:
            if ticket in self._live:
                self._cancelled.add(ticket)
                self._lock.notify_all()

    def stats(self) -> Stats:
        with self._lock:
            rounds = self._rounds
            running = [request for request in rounds.requests if request]
            used = sum(request.place for request in running)
            return Stats(
                running=len(running),
                waiting=len(self._waiting),
                slots=self._decoder.slots,
                cache_used=used / (self._decoder.slots * self.context),
                compilations=count_compilations(),
                prompt_tokens=rounds.prompt_tokens,
                cached_tokens=rounds.cached_tokens,
                reply_tokens=rounds.reply_tokens,
            )

    def start(self) -> None:
        """Runs `step` on a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; requests that still run are cancelled."""
        with self._lock:
            self._closing = True
            self._cancelled.update(self._live)
            self._lock.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None

    def reply(
        self, prompt: Sequence[int], parameters: SamplingParameters
    ) -> Iterator[Update]:
        """Follows one request to its end, with or without the thread."""
        updates = SimpleQueue()
        ticket = self.submit(prompt, parameters, updates.put)
        finished = False
        try:
            while not finished:
                if self._thread is None:
                    while updates.empty():
                        self.step()
                update = updates.get()
                finished = update.finish is not None
                yield update
        finally:
            self.cancel(ticket)  # whoever stops listening wants no more

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters | Sequence[SamplingParameters],
    ) -> list[Reply]:
        """Whole replies to many prompts, in order; more than the queue holds are fine.

        For an engine without a thread. Nobody waits for a first token here, so all
        prompts that have a slot are read before the next decode step: with short
        replies most slots would be empty else.
        """
        if isinstance(parameters, SamplingParameters):
            parameters = [parameters] * len(prompts)
        told = [[] for _ in prompts]
        todo = deque(zip(prompts, parameters, told, strict=True))
        slots = self._decoder.slots
        while todo or self._step(patient=True):
            # No more wait than can run next: the others need no memory yet.
            while todo and self._has_room() and len(self._waiting) < slots:
                prompt, how, updates = todo.popleft()
                self.submit(prompt, how, updates.append)
            if todo:
                self._step(patient=True)
        return [join_updates(updates) for updates in told]

    # ---- for the engine's thread ----------------------------------------------

    def warm_up(self) -> None:
        """Compiles every program, by replies to prompts of every chunk size."""
        with jax.set_mesh(self._decoder.mesh):
            self._decoder.warm_up()
        last = self.context - 1
        self.complete([[0], [0] * min(2, last)], SamplingParameters(max_tokens=2))
        self._rounds.forget_counts()

    def update(self, params, fingerprint: str) -> None:
        """Goes on with new weights, laid out as the first; nothing compiles again.

        What was read of earlier prompts is forgotten: old weights wrote it.

        Args:
            params: of the model, as `Engine` takes them. They may be donated
                elsewhere only once the next ones have been given.
            fingerprint: names them.

        Raises:
            RuntimeError: requests are running or waiting.
            ValueError: other shapes, dtypes or places.
        """
        if self._live or not self._rounds.idle:
            raise RuntimeError('the engine is busy: its weights cannot change')
        with jax.set_mesh(self._decoder.mesh):
            self._decoder.update(params)
        self._rounds.forget_prompts()
        self.fingerprint = fingerprint

    def step(self) -> bool:
        """One round: admissions, chunks of prompts, a decode step; False: idle."""
        return self._step(patient=False)

    def _step(self, patient):
        with jax.set_mesh(self._decoder.mesh):
            self._drop_cancelled()
            self._seat()
            busy = self._rounds.run(patient)
        # Who waits can be alone: a grammar may have ended what ran in this round.
        return busy or bool(self._waiting)

    def _run(self):
        while True:
            with self._lock:
                idle = lambda: self._rounds.idle and not (self._live or self._cancelled)
                while idle() and not self._closing:
                    self._lock.wait()
                if idle():
                    return
            try:
                self.step()
            except BaseException as error:
                self._fail(error)
                raise

    def _fail(self, error):
        """Ends every request: after an error the slots cannot be trusted."""
        with self._lock:
            self.failure = f'the engine stopped: {str(error) or type(error).__name__}'
            requests = list(self._live.values())
            self._live.clear()
            self._waiting.clear()
            self._cancelled.clear()
            self._rounds.clear()
        for request in requests:
            # The listener may be what failed; the others are to be told all the same.
            with suppress(Exception):
                request.listen(Update(finish='error', error=self.failure))

    def _has_room(self) -> bool:
        """Whether one more may wait: for a free slot, or in the queue."""
        free = self._rounds.requests.count(None)
        return len(self._waiting) < self._most_waiting + free

    def _drop_cancelled(self):
        with self._lock:
            requests = [self._live[t] for t in self._cancelled if t in self._live]
            self._cancelled.clear()
            for request in requests:
                if request.slot is None:
                    self._waiting.remove(request)
        for request in requests:
            self._end(request, Update(finish='cancelled'))

    def _seat(self):
        """Gives free slots to those who wait, first come first served."""
        for slot, taken in enumerate(self._rounds.requests):
            if taken:
                continue
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
                self._rounds.seat(request, slot)
            self._rounds.begin(request)

    def _end(self, request, last):
        """Frees the slot, then tells."""
        with self._lock:
            del self._live[request.ticket]
            self._cancelled.discard(request.ticket)
            if request.slot is not None:
                self._rounds.free(request)
        if request.slot is not None:
            self._rounds.park(request)
        request.listen(last)
