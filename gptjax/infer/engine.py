"""Continuous batching: many requests at once, each drawn as if it were alone.

A request waits for a free slot, has its prompt read into it a chunk at a time, and
then takes part in every decode step until it ends. A `step` (see `scheduler`) is one
decode step and one chunk, so that a long prompt does not hold up running replies, or
a few chunks where more prompts wait than replies run.

A reply is a function of weights, prompt, parameters and seed. Draws depend on the
request's seed and the token's position, chunks begin at the same positions of a prompt
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
from gptjax.infer.model_runner import ModelRunner, count_compilations
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
from gptjax.infer.request_state import RequestState, StreamedText
from gptjax.infer.scheduler import Scheduler
from gptjax.models.cache import empty_cache


class Stats(NamedTuple):
    """An engine's load, and its counts since it was made."""

    running: int
    waiting: int
    slots: int
    cache_used: float  # share of the cache's positions that hold a running request
    compilations: int  # of this process
    prompt_tokens: int
    cached_tokens: int  # of the prompts' tokens, those that the prefix cache had
    reply_tokens: int


class Engine:
    """Draws replies to many prompts at once: for serving, evaluation and rollouts.

    `context` bounds the tokens of a prompt and its reply together; `failure` is the
    error that stopped the engine for ever, or None.

    Args:
        params: as trained (layers stacked), laid out on a mesh whose only axis above
            one may be 'tensor', or on one device.
        slots: requests that run at once.
        chunk: tokens of a prompt read at once.
        queue: requests that may wait for a slot.
        prefix_bytes: capacity of the cache of earlier prompts' beginnings.
        new_cache: `empty_cache` or `empty_int8_cache`.
        convert: is applied to the weights once their layers are unstacked; see
            `quantize_params`.
        draft: (settings, params) of a smaller model of the same vocabulary, for
            speculative decoding; see `gptjax.infer.speculative`.
        guesses: tokens that the draft proposes in a step.
        fingerprint: a hash of the weights.
        trained_step: the training step of the weights' checkpoint.
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
        self._runner = ModelRunner(
            settings, params, slots, chunk, new_cache, convert, draft, guesses
        )
        self._scheduler = Scheduler(self._runner, prefix_bytes, self._end)
        self._max_waiting = queue
        self._new_ids = count(1)
        self._lock = threading.Condition()
        self._waiting = deque()
        self._cancelled = set()
        self._requests = {}  # request_id -> request, waiting or running
        self._thread = None
        self._closing = False

    # ---- for any thread -------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        on_update: Callable[[Update], None],
    ) -> int:
        """Queues a request; its id, for `cancel`.

        `on_update` is called with each `Update`, on the engine's thread; an error in it
        stops the engine.

        Raises:
            EngineStopped: it has failed, or it was closed.
            QueueFull: no more requests may wait.
            ContextOverflow: the prompt leaves no room for a reply.
            UserError: the prompt or a parameter is not valid.
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
            request = RequestState(
                request_id=next(self._new_ids),
                prompt=prompt,
                parameters=parameters,
                on_update=on_update,
                text=StreamedText(self.tokenizer, parameters.stop),
                max_tokens=min(parameters.max_tokens, room),
                eos_id=self.tokenizer.eos_id,
            )
            self._requests[request.request_id] = request
            self._waiting.append(request)
            self._lock.notify_all()
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Ends a request before the next decode step, if it has not ended yet."""
        with self._lock:
            if request_id in self._requests:
                self._cancelled.add(request_id)
                self._lock.notify_all()

    def stats(self) -> Stats:
        with self._lock:
            scheduler = self._scheduler
            running = [request for request in scheduler.requests if request]
            num_cached = sum(request.num_cached for request in running)
            return Stats(
                running=len(running),
                waiting=len(self._waiting),
                slots=self._runner.slots,
                cache_used=num_cached / (self._runner.slots * self.context),
                compilations=count_compilations(),
                prompt_tokens=scheduler.prompt_tokens,
                cached_tokens=scheduler.cached_tokens,
                reply_tokens=scheduler.reply_tokens,
            )

    def start(self) -> None:
        """Runs `step` on a thread of its own until `close`."""
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; requests that still run are cancelled."""
        with self._lock:
            self._closing = True
            self._cancelled.update(self._requests)
            self._lock.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None

    def reply(
        self, prompt: Sequence[int], parameters: SamplingParameters
    ) -> Iterator[Update]:
        """Yields the updates of one request, with or without the thread."""
        updates = SimpleQueue()
        request_id = self.submit(prompt, parameters, updates.put)
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
            self.cancel(request_id)  # whoever closes the generator wants no more

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters | Sequence[SamplingParameters],
    ) -> list[Reply]:
        """Whole replies to any number of prompts, in order.

        For an engine without a thread. Nobody waits for a first token here, so all
        prompts that have a slot are read before the next decode step: otherwise most
        slots would be empty where replies are short.
        """
        if isinstance(parameters, SamplingParameters):
            parameters = [parameters] * len(prompts)
        updates = [[] for _ in prompts]
        todo = deque(zip(prompts, parameters, updates, strict=True))
        slots = self._runner.slots
        while todo or self._step(whole_prompts=True):
            # No more wait than can run next: the others need no memory yet.
            while todo and self._has_room() and len(self._waiting) < slots:
                prompt, sampling, reply_updates = todo.popleft()
                self.submit(prompt, sampling, reply_updates.append)
            if todo:
                self._step(whole_prompts=True)
        return [join_updates(reply_updates) for reply_updates in updates]

    # ---- for the engine's thread ----------------------------------------------

    def warm_up(self) -> None:
        """Compiles every program: nothing compiles after it."""
        with jax.set_mesh(self._runner.mesh):
            self._runner.warm_up()
        last = self.context - 1
        self.complete([[0], [0] * min(2, last)], SamplingParameters(max_tokens=2))
        self._scheduler.reset_counts()

    def update_weights(self, params, fingerprint: str) -> None:
        """Takes new weights, sharded as the first; nothing compiles again.

        The prefix cache is cleared, as old weights wrote it. The weights may be donated
        elsewhere only once the next ones have been given.

        Raises:
            RuntimeError: requests are running or waiting.
            ValueError: other shapes, dtypes or shardings.
        """
        if self._requests or not self._scheduler.idle:
            raise RuntimeError('the engine is busy: its weights cannot change')
        with jax.set_mesh(self._runner.mesh):
            self._runner.update_weights(params)
        self._scheduler.clear_prefix_cache()
        self.fingerprint = fingerprint

    def step(self) -> bool:
        """Assigns slots, reads chunks of prompts, decodes a step; False: idle."""
        return self._step(whole_prompts=False)

    def _step(self, whole_prompts):
        with jax.set_mesh(self._runner.mesh):
            self._end_cancelled()
            self._assign_slots()
            busy = self._scheduler.step(whole_prompts)
        # A grammar may have ended all that ran in this step while others still wait.
        return busy or bool(self._waiting)

    def _run(self):
        while True:
            with self._lock:
                idle = lambda: (
                    self._scheduler.idle and not (self._requests or self._cancelled)
                )
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
            requests = list(self._requests.values())
            self._requests.clear()
            self._waiting.clear()
            self._cancelled.clear()
            self._scheduler.clear()
        for request in requests:
            # Its callback may be what failed; the others are called all the same.
            with suppress(Exception):
                request.on_update(Update(finish='error', error=self.failure))

    def _has_room(self) -> bool:
        """Whether one more request may wait, for a free slot or in the queue."""
        free = self._scheduler.requests.count(None)
        return len(self._waiting) < self._max_waiting + free

    def _end_cancelled(self):
        with self._lock:
            requests = [
                self._requests[id] for id in self._cancelled if id in self._requests
            ]
            self._cancelled.clear()
            for request in requests:
                if request.slot is None:
                    self._waiting.remove(request)
        for request in requests:
            self._end(request, Update(finish='cancelled'))

    def _assign_slots(self):
        """Gives free slots to the requests that wait, first come first served."""
        for slot, running in enumerate(self._scheduler.requests):
            if running:
                continue
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
                self._scheduler.assign_slot(request, slot)
            self._scheduler.copy_cached_prefix(request)

    def _end(self, request, last_update):
        """Frees the slot of a request, then calls it with its last update."""
        with self._lock:
            del self._requests[request.request_id]
            self._cancelled.discard(request.request_id)
            self._scheduler.free_slot(request)
        self._scheduler.stop_decoding(request)
        request.on_update(last_update)
