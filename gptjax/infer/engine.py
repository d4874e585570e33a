"""Continuous batching: many requests at once, each drawn as if it were alone.

A request waits for a free slot, has its prompt read into it a chunk at a time, and
then takes part in every decode step until it ends. A round (`step`) is at most one
chunk and one decode step, so that a long prompt does not hold up running replies.
The host looks at the tokens of a step while the device computes the next one; what
was drawn past a reply's end is thrown away.

A reply is a function of weights, prompt, parameters and seed. Draws come from the
request's seed and the token's place, chunks begin at the same places of a prompt
whatever was cached, and shapes never change: rows do not see one another.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from gptjax.errors import UserError
from gptjax.infer import compilations, speculative
from gptjax.infer.prefix import PrefixCache
from gptjax.infer.request import (
    ContextOverflow,
    Parameters,
    QueueFull,
    Reply,
    Token,
    Update,
    check_parameters,
)
from gptjax.infer.sampling import Sampling
from gptjax.infer.slots import (
    Drawn,
    admit,
    empty_slots,
    park,
    programs,
    read_block,
    write_block,
)
from gptjax.infer.text import ReplyText
from gptjax.models.cache import empty_cache
from gptjax.models.gpt import unstack_layers
from gptjax.parallel.mesh import mesh_of

LEAST_CHUNK = 16  # tokens; what is left of a prompt is padded to a power of two


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


@dataclass
class _Request:
    """A request's state on the host."""

    ticket: int
    prompt: tuple[int, ...]
    parameters: Parameters
    listen: Callable[[Update], None]
    text: ReplyText
    max_tokens: int
    slot: int | None = None
    read: int = 0  # tokens of the prompt in the slot's cache
    drawn: int = 0
    decoding: bool = False
    scores: list = field(
        default_factory=list
    )  # (tokens in a chunk, Drawn) of the prompt
    prompt_told: bool = False

    @property
    def place(self) -> int:
        return self.read + self.drawn


class Engine:
    """Draws replies to many prompts at once.

    Attributes:
        tokenizer: as given.
        context: tokens of a prompt and its reply together, at most.
        vocab_size: V.
        fingerprint: as given: what the weights are.
        trained_step: as given: the checkpoint's.

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
        self._mesh = mesh_of(params)
        self._slots = [None] * slots  # the request in each
        self._most_waiting = queue
        chunk = min(chunk, max(LEAST_CHUNK, settings.context // 4))
        self._prefix = PrefixCache(chunk, prefix_bytes)
        with jax.set_mesh(self._mesh):
            ready = jax.jit(lambda params: convert(unstack_layers(params)))
            self._params = ready(params)
            cache = new_cache(settings, slots, settings.context)
            if draft is None:
                self._programs = programs(settings, settings.context)
            else:
                _check_draft(settings, draft[0], guesses)
                self._programs = speculative.programs(
                    settings, draft[0], guesses, settings.context
                )
                self._params = (self._params, ready(draft[1]))
                cache = (cache, new_cache(draft[0], slots, settings.context))
            self._state = jax.jit(empty_slots, static_argnums=(1, 2))(
                cache, settings.vocab_size, settings.context
            )
        self._words = -(-settings.vocab_size // 32)
        self._everything = jax.device_put(
            np.full((slots, self._words), 2**32 - 1, np.uint32),
            jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec()),
        )
        self._pending = None  # (a step's Drawn, the request of each slot)
        self._tickets = count(1)
        self._lock = threading.Condition()
        self._waiting = deque()
        self._cancelled = set()
        self._live = {}  # ticket -> request
        self._thread = None
        self._closing = False
        self._failure = None
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
            if self._failure or self._closing:
                raise QueueFull(self._failure or 'the engine is closing')
            if len(self._waiting) >= self._most_waiting + self._slots.count(None):
                raise QueueFull(f'{len(self._waiting)} requests wait')
            request = _Request(
                ticket=next(self._tickets),
                prompt=prompt,
                parameters=parameters,
                listen=listen,
                text=ReplyText(self.tokenizer, parameters.stop),
                max_tokens=min(parameters.max_tokens, room),
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

        For an engine without a thread.
        """
        if isinstance(parameters, Parameters):
            parameters = [parameters] * len(prompts)
        told = [[] for _ in prompts]
        todo = deque(zip(prompts, parameters, told, strict=True))
        while todo or self.step():
            while todo and len(self._waiting) < len(self._slots):
                prompt, how, updates = todo.popleft()
                self.submit(prompt, how, updates.append)
            if todo:
                self.step()
        return [join_updates(updates) for updates in told]

    # ---- for the engine's thread ----------------------------------------------

    def warm_up(self) -> None:
        """Compiles every program, by replies to prompts of every chunk size."""
        with jax.set_mesh(self._mesh):
            sizes = sorted({self._padded(n) for n in range(1, self._prefix.chunk + 1)})
            for size in [*sizes, self._prefix.chunk]:
                self._warm_chunk(size)
            block = read_block(
                self._state, np.int32(0), np.int32(0), self._prefix.chunk
            )
            self._state = write_block(self._state, np.int32(0), np.int32(0), block)
        last = self.context - 1
        self.complete([[0], [0] * min(2, last)], Parameters(max_tokens=2))
        self._prompt_tokens = self._cached_tokens = self._reply_tokens = 0

    def step(self) -> bool:
        """One round: admissions, at most a chunk, a decode step; False: idle."""
        with jax.set_mesh(self._mesh):
            self._drop_cancelled()
            self._seat()
            reading = [r for r in self._slots if r and not r.decoding]
            if reading:
                self._read_chunk(min(reading, key=lambda r: r.ticket))
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
        return busy

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
            except Exception as error:  # noqa: BLE001 (every listener is told)
                self._fail(error)
                raise

    def _fail(self, error):
        """Ends every request: after an error the slots cannot be trusted."""
        with self._lock:
            self._failure = f'the engine stopped: {error}'
            requests = list(self._live.values())
            self._live.clear()
            self._waiting.clear()
        for request in requests:
            # The listener may be what failed; the others are to be told all the same.
            with suppress(Exception):
                request.listen(Update(finish='error', error=self._failure))

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
                self._state = write_block(
                    self._state, np.int32(slot), np.int32(request.read), block
                )
                request.read += self._prefix.chunk
            self._cached_tokens += request.read

    def _read_chunk(self, request):
        """Reads the next chunk of a prompt; the last token is left to `decode`."""
        prompt, chunk = request.prompt, self._prefix.chunk
        wanted = request.parameters.prompt_logprobs
        rest = prompt[request.read : -1][:chunk]
        if rest:
            start, end = request.read, request.read + len(rest)
            size = self._padded(len(rest))
            tokens, positions, targets = np.zeros((3, size), np.int32)
            positions[:] = self.context
            tokens[: len(rest)] = rest
            positions[: len(rest)] = range(start, end)
            targets[: len(rest)] = prompt[start + 1 : end + 1]
            slot = np.int32(request.slot)
            self._state, scored = self._programs.prefill(
                self._params, self._state, slot, tokens, positions, targets, wanted
            )
            if wanted:
                request.scores.append((len(rest), scored))
            if len(rest) == chunk and self._prefix.capacity:
                if not self._prefix.has(prompt, end):
                    block = read_block(self._state, slot, np.int32(start), chunk)
                    self._prefix.keep(prompt, end, block)
            request.read = end
        if request.read < len(prompt) - 1:
            return
        if wanted:
            request.listen(Update(prompt=_prompt_tokens(request)))
        if request.max_tokens == 0:
            self._end(request, Update(finish='length'))
            return
        self._admit(request)

    def _admit(self, request):
        parameters = request.parameters
        seen, bias = (
            np.zeros(self.vocab_size, bool),
            np.zeros(self.vocab_size, np.float32),
        )
        seen[list(request.prompt)] = True
        for token, value in parameters.logit_bias.items():
            bias[token] = value
        sampling = Sampling(
            *(
                (np.int32 if name == 'top_k' else np.float32)(getattr(parameters, name))
                for name in Sampling._fields
            )
        )
        self._state = admit(
            self._state,
            np.int32(request.slot),
            np.int32(request.prompt[-1]),
            np.int32(len(request.prompt) - 1),
            np.uint32(parameters.seed),
            sampling,
            seen,
            bias,
        )
        request.decoding = True

    def _dispatch(self, decoding):
        """Begins a decode step; (its results to come, the request of each slot)."""
        allowed, constrained = self._everything, False
        alternatives = any(r and r.parameters.logprobs for r in decoding)
        if any(r and r.parameters.grammar for r in decoding):
            constrained = True
            allowed = np.full((len(decoding), self._words), 2**32 - 1, np.uint32)
            for slot, request in enumerate(decoding):
                if request and request.parameters.grammar:
                    allowed[slot] = request.parameters.grammar.allowed()
        self._state, drawn = self._programs.decode(
            self._params, self._state, allowed, constrained, alternatives
        )
        for array in drawn:
            array.copy_to_host_async()
        return drawn, decoding

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
                    self._take(request, _token(drawn, slot, place, request.parameters))

    def _take(self, request, token):
        """Goes on with a drawn token: shown, held back, or the reply's end."""
        parameters = request.parameters
        request.drawn += 1
        self._reply_tokens += 1
        if token.id == self.tokenizer.eos_id or token.id in parameters.stop_tokens:
            by = None if token.id == self.tokenizer.eos_id else token.id
            text, tokens, _ = request.text.finish()
            last = Update(text, tokens, finish='stop', stopped_by=by, ending=token)
            self._end(request, last)
            return
        shown = request.text.push(token)
        finish = 'stop' if shown.stopped_by is not None else None
        grammar = parameters.grammar
        if grammar and not finish:
            grammar.accept(token.id)
            finish = 'stop' if grammar.ended() else None
        if not finish and request.drawn == request.max_tokens:
            finish = 'length'
        if finish and shown.stopped_by is None:
            rest = request.text.finish()
            shown = shown._replace(
                text=shown.text + rest.text, tokens=shown.tokens + rest.tokens
            )
        update = Update(
            shown.text, shown.tokens, finish=finish, stopped_by=shown.stopped_by
        )
        if finish:
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
            self._state = park(
                self._state, np.int32(request.slot), np.int32(self.context)
            )
        request.listen(last)

    def _padded(self, length: int) -> int:
        """The size of the program that reads so many tokens."""
        size = max(LEAST_CHUNK, 1 << (length - 1).bit_length())
        return min(size, max(self._prefix.chunk, length))

    def _warm_chunk(self, size):
        nowhere = np.full(size, self.context, np.int32)
        zeros = np.zeros(size, np.int32)
        self._state, _ = self._programs.prefill(
            self._params, self._state, np.int32(0), zeros, nowhere, zeros, True
        )


def _check_draft(settings, draft, guesses):
    if draft.vocab_size != settings.vocab_size:
        raise UserError(
            f'the draft model has {draft.vocab_size} tokens and the model '
            f'{settings.vocab_size}: use two that were trained with one tokenizer'
        )
    if draft.context < settings.context and draft.position == 'learned':
        raise UserError(
            f'the draft model has {draft.context} positions and the model '
            f'{settings.context}: use a draft with as many'
        )
    if guesses < 1:
        raise UserError(f'guesses={guesses}: use a positive number')


def join_updates(updates: Sequence[Update]) -> Reply:
    """The whole reply that updates tell of.

    Raises:
        RuntimeError: the engine met an error.
    """
    last = updates[-1]
    if last.finish == 'error':
        raise RuntimeError(last.error)
    return Reply(
        text=''.join(update.text for update in updates),
        tokens=tuple(token for update in updates for token in update.tokens),
        prompt=next((u.prompt for u in updates if u.prompt is not None), None),
        finish=last.finish,
        stopped_by=last.stopped_by,
        ending=last.ending,
    )


def _token(drawn: Drawn, row: int, place: int, parameters: Parameters) -> Token:
    """One token of a step, as the host tells it."""
    token = int(drawn.tokens_BT[row, place])
    if parameters.logprobs is None and not parameters.prompt_logprobs:
        return Token(token)
    listed = slice(parameters.logprobs or 0)
    top = zip(
        drawn.top_BTA[row, place, listed].tolist(),
        drawn.top_logprobs_BTA[row, place, listed].tolist(),
        strict=True,
    )
    return Token(token, float(drawn.logprobs_BT[row, place]), tuple(top))


def _prompt_tokens(request: _Request) -> tuple[Token, ...]:
    """The prompt's tokens with their log-probabilities; the first has none."""
    told = [Token(request.prompt[0])]
    for length, scored in request.scores:
        scored = Drawn(*(np.asarray(array) for array in scored))
        told += [_token(scored, 0, n, request.parameters) for n in range(length)]
    return tuple(told)
