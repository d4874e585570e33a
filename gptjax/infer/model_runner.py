"""A model with its slots on a mesh: numbers in, tokens out.

What the engine schedules. The methods dispatch to the device and do not wait; they
are called under `jax.set_mesh(decoder.mesh)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from gptjax.core.console import UserError
from gptjax.infer import speculative
from gptjax.infer.request import Grammar, SamplingParameters
from gptjax.infer.sampling import Sampling
from gptjax.infer.slots import (
    Detail,
    Drawn,
    admit,
    empty_slots,
    park,
    programs,
    read_block,
    write_block,
)
from gptjax.models.gpt import unstack_layers
from gptjax.models.linear import turn_params
from gptjax.parallel.mesh import mesh_of

# How many of the fields of `Drawn` a step tells.
FIELDS_TOLD = {Detail.TOKEN: 2, Detail.LOGPROB: 3, Detail.ALTERNATIVES: 5}

LEAST_CHUNK = 16  # tokens; what is left of a prompt is padded to a power of two


class Decoder:
    """The weights, the slots' state, and the programs on them.

    Attributes:
        mesh: where all of it lies.
        context: tokens that a slot holds.
        vocab_size: V.
        slots: how many.
        chunk: tokens of a prompt that are read at once, at most.

    Args: as `Engine` has them.
    """

    def __init__(
        self,
        settings: FrozenConfigDict,
        params,
        *,
        slots: int,
        chunk: int,
        new_cache: Callable,
        convert: Callable,
        draft: tuple[FrozenConfigDict, Any] | None,
        guesses: int,
    ):
        self.mesh = mesh_of(params)
        self.context = settings.context
        self.vocab_size = settings.vocab_size
        self.slots = slots
        self.chunk = min(chunk, max(LEAST_CHUNK, settings.context // 4))
        platforms = [device.platform for device in self.mesh.devices.flat]
        turns = slots == 1 and platforms == ['cpu']
        with jax.set_mesh(self.mesh):

            @jax.jit
            def ready(params):
                params = convert(unstack_layers(params))
                return turn_params(params) if turns else params

            self._ready = ready
            self._params = self._ready(params)
            cache = new_cache(settings, slots, settings.context)
            if draft is None:
                self._programs = programs(settings, settings.context)
            else:
                _check_draft(settings, draft[0], guesses)
                self._programs = speculative.programs(
                    settings, draft[0], guesses, settings.context
                )
                self._params = (self._params, self._ready(draft[1]))
                cache = (cache, new_cache(draft[0], slots, settings.context))
            self._state = jax.jit(empty_slots, static_argnums=(1, 2))(
                cache, settings.vocab_size, settings.context
            )
        self._words = -(-settings.vocab_size // 32)
        self._everything = jax.device_put(
            self._all_allowed(),
            jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()),
        )

    def update(self, params) -> None:
        """Takes new weights of the model (a draft model's stay); compiles nothing.

        Raises:
            ValueError: they have other shapes, dtypes or places.
        """
        draft = self._params[1:] if isinstance(self._params, tuple) else ()
        old = self._params[0] if draft else self._params
        new = self._ready(params)
        like = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)
        if jax.tree.map(like, new) != jax.tree.map(like, old):
            raise ValueError('the weights differ in shape, dtype or place')
        self._params = (new, *draft) if draft else new

    def warm_up(self) -> None:
        """Compiles what reads prompts and copies blocks; `decode` is left."""
        sizes = {self._padded(length) for length in range(1, self.chunk + 1)}
        for size in sorted(sizes):
            nowhere = np.full(size, self.context, np.int32)
            zeros = np.zeros(size, np.int32)
            self._state, _ = self._programs.prefill(
                self._params, self._state, np.int32(0), zeros, nowhere, zeros, True
            )
        self.write_block(0, 0, self.read_block(0, 0))

    def read(self, slot: int, prompt: Sequence[int], start: int, end: int, score: bool):
        """Reads tokens `start` to `end` (at most a chunk) of a prompt into a slot.

        Returns:
            `Drawn` (1, T): with `score`, the log-probabilities of the tokens after
            each; the first `end - start` are meant.
        """
        length = end - start
        tokens, positions, targets = np.zeros((3, self._padded(length)), np.int32)
        positions[:] = self.context
        tokens[:length] = prompt[start:end]
        positions[:length] = range(start, end)
        targets[:length] = prompt[start + 1 : end + 1]
        self._state, scored = self._programs.prefill(
            self._params,
            self._state,
            np.int32(slot),
            tokens,
            positions,
            targets,
            score,
        )
        return scored

    def admit(
        self, slot: int, prompt: Sequence[int], parameters: SamplingParameters
    ) -> None:
        """The slot, which has read all but the last token, decodes from now on."""
        seen = np.zeros(self.vocab_size, bool)
        seen[list(prompt)] = True
        bias = np.zeros(self.vocab_size, np.float32)
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
            np.int32(slot),
            np.int32(prompt[-1]),
            np.int32(len(prompt) - 1),
            np.uint32(parameters.seed),
            sampling,
            seen,
            bias,
        )

    def decode(self, grammars: Sequence[Grammar | None], detail: Detail) -> Drawn:
        """Begins a step of all slots; its results are on their way to the host.

        Args:
            grammars: of each slot.
            detail: what is told of each token. What it leaves out is None.
        """
        allowed = self._everything
        if any(grammars):
            allowed = self._all_allowed()
            for slot, grammar in enumerate(grammars):
                if grammar:
                    allowed[slot] = grammar.allowed()
            # Where the program was compiled for; elsewhere it would compile again.
            allowed = jax.device_put(allowed, self._everything.sharding)
        self._state, drawn = self._programs.decode(
            self._params, self._state, allowed, any(grammars), np.int32(detail)
        )
        told = drawn[: FIELDS_TOLD[detail]]
        for array in told:
            array.copy_to_host_async()
        return Drawn(*told, *[None] * (len(drawn) - len(told)))

    def park(self, slot: int) -> None:
        """The slot is idle from now on."""
        self._state = park(self._state, np.int32(slot), np.int32(self.context))

    def read_block(self, slot: int, start: int):
        """A copy of a chunk's places in a slot's cache."""
        at = (np.int32(slot), np.int32(start))
        return read_block(self._state, *at, self.chunk)

    def write_block(self, slot: int, start: int, block) -> None:
        """Puts such a copy into a slot."""
        at = (np.int32(slot), np.int32(start))
        self._state = write_block(self._state, *at, block)

    def _all_allowed(self):
        return np.full((self.slots, self._words), 2**32 - 1, np.uint32)

    def _padded(self, length: int) -> int:
        """The size of the program that reads so many tokens."""
        size = max(LEAST_CHUNK, 1 << (length - 1).bit_length())
        return min(size, max(self.chunk, length))


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


# ---- compilations: proof that serving compiles nothing

_COMPILATION = '/jax/core/compile/backend_compile_duration'
_num_compilations = 0


def count_compilations() -> int:
    """Programs that this process has compiled since this module was imported."""
    return _num_compilations


def _count_event(event: str, duration: float, **details) -> None:
    global _num_compilations
    _num_compilations += event == _COMPILATION


jax.monitoring.register_event_duration_secs_listener(_count_event)
