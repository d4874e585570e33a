"""The engine: continuous batching of many requests over a fixed number of slots.

A request waits for a free slot, its prompt is prefilled in chunks, and then every
decode step draws one token of its reply. `Engine` keeps the queue and may be called
from any thread. The `Scheduler` decides what a step computes, and the `ModelRunner`
computes it on the device.

A reply depends on the weights, the prompt, the parameters and the seed, and not on
other requests: the key of a draw is (seed, position), a prompt is always cut into
chunks at the same positions, and all shapes are fixed.
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
    """The load of an engine, and counts since it was created."""

    running: int
    waiting: int
    slots: int
    cache_used: float  # share of the cache's positions that running requests fill
    compilations: int  # of this process
    prompt_tokens: int
    cached_tokens: int  # prompt tokens that came from the prefix cache
    reply_tokens: int


class Engine:
    """Generates replies to many prompts at once: serving, evaluation and rollouts.

    Args:
        params: as trained (layers stacked), on one device or on a mesh whose only
            axis larger than one is 'tensor'.
        context: the most tokens of a prompt and its reply together, which the cache of
            a slot has room for; None: the context of the model.
        slots: requests that run at the same time.
        chunk: tokens of a prompt that one prefill reads.
        queue: requests that may wait for a slot.
        prefix_bytes: capacity of the prefix cache; 0 switches it off.
        new_cache: `empty_cache` or `empty_int8_cache`.
        convert: applied to the unstacked weights, for example `quantize_params`.
        draft: (settings, params) of a smaller model with the same vocabulary, for
            speculative decoding (`gptjax.infer.speculative`).
        guesses: tokens that the draft model proposes in a step.
        fingerprint: a hash of the weights.
        trained_step: the training step of the checkpoint.
        trained_fingerprint: the hash in RUN/eval.json, of the weights as trained.
    """

    def __init__(
        self,
        settings: FrozenConfigDict,
        params,
        tokenizer,
        *,
        context: int | None = None,
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
        trained_fingerprint: str = '',
    ):
        if slots < 1:
            raise UserError(f'slots={slots}: use a positive number')
        self.context = settings.context if context is None else context
        if not 1 <= self.context <= settings.context:
            raise UserError(
                f'context={context}: the model has {settings.context} positions: use '
                f'a number from 1 to {settings.context}'
            )
        self.tokenizer = tokenizer
        self._longest_context = settings.context
        self.vocab_size = settings.vocab_size
        self.fingerprint = fingerprint
        self.trained_step = trained_step
        self.trained_fingerprint = trained_fingerprint
        self.failure = None  # the error that stopped the engine
        self._runner = ModelRunner(
            settings,
            params,
            self.context,
            slots,
            chunk,
            new_cache,
            convert,
            draft,
            guesses,
        )
        self._scheduler = Scheduler(self._runner, prefix_bytes, self._end_request)
        self._max_waiting = queue
        self._new_ids = count(1)
        self._lock = threading.Condition()
        self._waiting = deque()
        self._cancelled = set()
        self._requests = {}  # request_id -> request that waits or runs
        self._thread = None
        self._closing = False

    # ---- methods for any thread -----------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        parameters: SamplingParameters,
        on_update: Callable[[Update], None],
    ) -> int:
        """Queues a request and returns its id, for `cancel`.

        The engine's thread calls `on_update` with each `Update`; an exception in it
        stops the engine.

        Raises:
            EngineStopped: the engine failed or was closed.
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
            raise ContextOverflow(len(prompt), self.context, self._longest_context)
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
                text=StreamedText(
                    self.tokenizer,
                    parameters.stop,
                    special_tokens=not parameters.skip_special_tokens,
                ),
                max_tokens=min(parameters.max_tokens, room),
                eos_ids=self.tokenizer.eos_ids,
            )
            self._requests[request.request_id] = request
            self._waiting.append(request)
            self._lock.notify_all()
        return request.request_id

    def cancel(self, request_id: int) -> None:
        """Ends a request before the next decode step, unless it has ended."""
        with self._lock:
            if request_id in self._requests:
                self._cancelled.add(request_id)
                self._lock.notify_all()

    def stats(self) -> Stats:
        with self._lock:
            scheduler = self._scheduler
            running = [request for request in scheduler.requests if request]
            num_cached = sum(r.num_prefilled + r.num_drawn for r in running)
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
        """Starts a thread that runs `step` until `close`."""
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancels all requests and ends the thread."""
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
        """Yields the updates of one request; closing the generator cancels it.

        Without the thread, this method runs the steps.
        """
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
            self.cancel(request_id)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        parameters: SamplingParameters | Sequence[SamplingParameters],
    ) -> list[Reply]:
        """Whole replies to any number of prompts, in order; needs no thread.

        Latency does not matter here, so every prompt that has a slot is prefilled
        completely before the next decode step. Otherwise most slots would stay empty
        when replies are short.
        """
        if isinstance(parameters, SamplingParameters):
            parameters = [parameters] * len(prompts)
        updates = [[] for _ in prompts]
        unsubmitted = deque(zip(prompts, parameters, updates, strict=True))
        slots = self._runner.slots
        while unsubmitted or self.step(whole_prompts=True):
            # More requests than slots need not wait in the queue and use memory.
            while unsubmitted and self._has_room() and len(self._waiting) < slots:
                prompt, sampling, reply_updates = unsubmitted.popleft()
                self.submit(prompt, sampling, reply_updates.append)
            if unsubmitted:
                self.step(whole_prompts=True)
        return [join_updates(reply_updates) for reply_updates in updates]

    # ---- methods for the engine's thread --------------------------------------

    def warm_up(self) -> None:
        """Compiles every program, so that later requests compile nothing."""
        with jax.set_mesh(self._runner.mesh):
            self._runner.warm_up()
        last = self.context - 1
        self.complete([[0], [0] * min(2, last)], SamplingParameters(max_tokens=2))
        self._scheduler.reset_counts()

    def update_weights(self, params, fingerprint: str) -> None:
        """Replaces the weights without compiling, and clears the prefix cache.

        The engine may share memory with `params`: donate them to another program only
        after the next call.

        Raises:
            RuntimeError: requests are running or waiting.
            ValueError: shapes, dtypes or shardings differ from the first weights.
        """
        if self._requests or not self._scheduler.idle:
            raise RuntimeError('the engine is busy: its weights cannot change')
        with jax.set_mesh(self._runner.mesh):
            self._runner.update_weights(params)
        self._scheduler.prefix_cache.clear()
        self.fingerprint = fingerprint

    def step(self, whole_prompts: bool = False) -> bool:
        """Assigns slots and runs one `Scheduler.step`; False if the engine is idle."""
        with jax.set_mesh(self._runner.mesh):
            self._end_cancelled()
            self._assign_slots()
            had_work = self._scheduler.step(whole_prompts)
        # Grammars may end all running replies within a step while requests wait.
        return had_work or bool(self._waiting)

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
        """Ends every request with an error: the state of the slots is unknown."""
        with self._lock:
            self.failure = f'the engine stopped: {str(error) or type(error).__name__}'
            requests = list(self._requests.values())
            self._requests.clear()
            self._waiting.clear()
            self._cancelled.clear()
            self._scheduler.clear()
        for request in requests:
            # This callback may have raised the error; the others are still called.
            with suppress(Exception):
                request.on_update(Update(finish='error', error=self.failure))

    def _has_room(self) -> bool:
        """Whether one more request gets a free slot or a place in the queue."""
        num_free = self._scheduler.requests.count(None)
        return len(self._waiting) < self._max_waiting + num_free

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
            self._end_request(request, Update(finish='cancelled'))

    def _assign_slots(self):
        """Gives free slots to waiting requests in the order of submission."""
        for slot, running in enumerate(self._scheduler.requests):
            if running:
                continue
            with self._lock:
                if not self._waiting:
                    return
                request = self._waiting.popleft()
                request.slot = slot
                self._scheduler.requests[slot] = request
            self._scheduler.copy_cached_prefix(request)

    def _end_request(self, request, last_update):
        """Frees the slot of a request, then sends the last update."""
        with self._lock:
            del self._requests[request.request_id]
            self._cancelled.discard(request.request_id)
            if request.slot is not None:
                self._scheduler.requests[request.slot] = None
        if request.decoding:
            self._runner.stop_slot(request.slot)
        request.on_update(last_update)
