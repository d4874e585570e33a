"""Continuous batching: many requests at once, each drawn as if it were alone.

A request waits for a free slot, has its prompt read into it a chunk at a time, and
then takes part in every decode step until it ends. A round (`step`) is one decode step
and one chunk, so that a long prompt does not hold up running replies, or a few chunks
where more prompts wait than replies run. The host looks at the tokens of a step while
the device computes the next one; what was drawn past a reply's end is thrown away.

A reply is a function of weights, prompt, parameters and seed. Draws come from the
request's seed and the token's place, chunks begin at the same places of a prompt
whatever was cached, and shapes never change: rows do not see one another.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from gptjax.errors import UserError
from gptjax.infer import compilations
from gptjax.infer.decoder import Decoder
from gptjax.infer.live import LiveRequest, token_of
from gptjax.infer.prefix import PrefixCache
from gptjax.infer.request import (
    ContextOverflow,
    EngineStopped,
    Parameters,
    QueueFull,
    Reply,
    Update,
    check_parameters,
    join_updates,
)
from gptjax.infer.slots import Drawn
from gptjax.infer.text import ReplyText
from gptjax.models.cache import empty_cache

MOST_CHUNKS = 8  # of prompts, read in a round


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
        self._prefix = PrefixCache(self._decoder.chunk, prefix_bytes)
        self._slots = [None] * slots  # the request in each
        self._most_waiting = queue
        self._pending = None  # (a step's Drawn, the request of each slot)
        self._tickets = count(1)
        self._lock = threading.Condition()
        self._waiting = deque()
        self._cancelled = set()
        self._live = {}  # ticket -> request
        self._thread = None
        self._closing = False
        self._prompt_tokens = self._cached_tokens = self._reply_tokens = 0

    # ---- for any thread -------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        parameters: Parameters,
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
            requests = [request for request in self._slots if request]
            used = sum(request.place for request in requests)
            return Stats(
                running=len(requests),
                waiting=len(self._waiting),
                slots=len(self._slots),
                cache_used=used / (len(self._slots) * self.context),
                compilations=compilations.count(),
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                reply_tokens=self._reply_tokens,
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

    def reply(self, prompt: Sequence[int], parameters: Parameters) -> Iterator[Update]:
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
        parameters: Parameters | Sequence[Parameters],
    ) -> list[Reply]:
        """Whole replies to many prompts, in order; more than the queue holds are fine.

        For an engine without a thread. Nobody waits for a first token here, so all
        prompts that have a slot are read before the next decode step: with short
        replies most slots would be empty else.
        """
        if isinstance(parameters, Parameters):
            parameters = [parameters] * len(prompts)
        told = [[] for _ in prompts]
        todo = deque(zip(prompts, parameters, told, strict=True))
        while todo or self._step(patient=True):
            # No more wait than can run next: the others need no memory yet.
            while todo and self._has_room() and len(self._waiting) < len(self._slots):
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
        self.complete([[0], [0] * min(2, last)], Parameters(max_tokens=2))
        self._prompt_tokens = self._cached_tokens = self._reply_tokens = 0

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
        if self._live or self._pending:
            raise RuntimeError('the engine is busy: its weights cannot change')
        with jax.set_mesh(self._decoder.mesh):
            self._decoder.update(params)
        self._prefix = PrefixCache(self._prefix.chunk, self._prefix.capacity)
        self.fingerprint = fingerprint

    def step(self) -> bool:
        """One round: admissions, chunks of prompts, a decode step; False: idle."""
        return self._step(patient=False)

    def _step(self, patient):
        with jax.set_mesh(self._decoder.mesh):
            self._drop_cancelled()
            self._seat()
            reading = self._read_chunks(patient)
            decoding = [r if r and r.decoding else None for r in self._slots]
            grammars = [r for r in decoding if r and r.parameters.grammar]
            if grammars:  # the last token decides which may follow
                self._settle()
                decoding = [r if r and r.decoding else None for r in self._slots]
            dispatched = None
            if any(decoding):
                dispatched = self._dispatch(decoding)
            busy = bool(reading or dispatched or self._pending)
            self._settle()
            self._pending = dispatched
        # Who waits can be alone: a grammar may have ended what ran in this round.
        return busy or bool(self._waiting)

    def _run(self):
        while True:
            with self._lock:
                idle = lambda: not (self._live or self._cancelled or self._pending)
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
            self._slots = [None] * len(self._slots)
            self._pending = None
        for request in requests:
            # The listener may be what failed; the others are to be told all the same.
            with suppress(Exception):
                request.listen(Update(finish='error', error=self.failure))

    def _has_room(self) -> bool:
        """Whether one more may wait: for a free slot, or in the queue."""
        return len(self._waiting) < self._most_waiting + self._slots.count(None)

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
        for slot, taken in enumerate(self._slots):
            if taken:
                continue
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
                request.slot = slot
                self._slots[slot] = request
            self._prompt_tokens += len(request.prompt)
            if request.parameters.prompt_logprobs:
                continue  # every chunk is computed again, for its scores
            for block in self._prefix.find(request.prompt[:-1]):
                self._decoder.write_block(slot, request.read, block)
                request.read += self._prefix.chunk
            self._cached_tokens += request.read

    def _read_chunks(self, patient: bool) -> bool:
        """Reads prompts, the oldest first; False: there is none to read.

        Args:
            patient: all there are; else as many chunks as running replies can bear.
        """
        reading = [request for request in self._slots if request]
        reading = [request for request in reading if not request.decoding]
        decoding = len(self._slots) - self._slots.count(None) - len(reading)
        # With one running reply for many prompts, the prompts are what waits.
        bearable = min(max(1, len(reading) // max(1, decoding)), MOST_CHUNKS)
        left = math.inf if patient else bearable
        for request in sorted(reading, key=lambda request: request.ticket):
            while left and request.ticket in self._live and not request.decoding:
                self._read_chunk(request)
                left -= 1
        return bool(reading)

    def _read_chunk(self, request):
        """Reads the next chunk of a prompt; the last token is left to `decode`."""
        prompt, chunk = request.prompt, self._prefix.chunk
        wanted = request.parameters.prompt_logprobs
        start, end = request.read, min(request.read + chunk, len(prompt) - 1)
        if start < end:
            scored = self._decoder.read(request.slot, prompt, start, end, wanted)
            if wanted:
                request.scores.append((end - start, scored))
            if end - start == chunk and self._prefix.capacity:
                if not self._prefix.has(prompt, end):
                    block = self._decoder.read_block(request.slot, start)
                    self._prefix.keep(prompt, end, block)
            request.read = end
        if request.read < len(prompt) - 1:
            return
        if wanted:
            request.listen(Update(prompt=request.scored_prompt()))
        if request.max_tokens == 0:
            self._end(request, Update(finish='length'))
            return
        self._decoder.admit(request.slot, prompt, request.parameters)
        request.decoding = True

    def _dispatch(self, decoding):
        """Begins a decode step; (its results to come, the request of each slot)."""
        grammars = [request and request.parameters.grammar for request in decoding]
        alternatives = any(r and r.parameters.logprobs for r in decoding)
        return self._decoder.decode(grammars, alternatives), decoding

    def _settle(self):
        """Tells what the last step drew."""
        if self._pending is None:
            return
        drawn, requests = self._pending
        self._pending = None
        drawn = Drawn(*(np.asarray(array) for array in drawn))
        for slot, request in enumerate(requests):
            for place in range(drawn.counts_B[slot]):
                if request and request.ticket in self._live:
                    self._take(
                        request, token_of(drawn, slot, place, request.parameters)
                    )

    def _take(self, request, token):
        self._reply_tokens += 1
        update = request.take(token)
        if update.finish:
            self._end(request, update)
        elif update.text or update.tokens:
            request.listen(update)

    def _end(self, request, last):
        """Frees the slot, then tells."""
        with self._lock:
            del self._live[request.ticket]
            self._cancelled.discard(request.ticket)
            if request.slot is not None:
                self._slots[request.slot] = None
        if request.decoding:
            self._decoder.park(request.slot)
        request.listen(last)
