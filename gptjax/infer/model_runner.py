"""The model and its slots on the device: what the scheduler calls.

The methods dispatch to the device and do not wait; they are called under
`jax.set_mesh(runner.mesh)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import FrozenConfigDict

from gptjax.core.console import UserError
from gptjax.infer import slots as device_slots
from gptjax.infer import speculative
from gptjax.infer.request import Grammar, SamplingParameters
from gptjax.infer.sampling import Sampling
from gptjax.infer.slots import Detail, StepOutput
from gptjax.models.gpt import unstack_layers
from gptjax.models.linear import transpose_params
from gptjax.parallel.mesh import get_mesh
from gptjax.parallel.sharding import replicated

# How many of the fields of `StepOutput` are copied to the host.
NUM_FIELDS = {Detail.TOKEN: 2, Detail.LOGPROB: 3, Detail.ALTERNATIVES: 5}

MIN_CHUNK = 16  # tokens; the last chunk of a prompt is padded to a power of two


class ModelRunner:
    """The weights, the slots' state, and the programs on them.

    The arguments are those of `Engine`; `chunk` is lowered for a short context.
    """

    def __init__(
        self,
        settings: FrozenConfigDict,
        params,
        slots: int,
        chunk: int,
        new_cache: Callable,
        convert: Callable,
        draft: tuple[FrozenConfigDict, Any] | None,
        guesses: int,
    ):
        self.mesh = get_mesh(params)
        self.context = settings.context
        self.vocab_size = settings.vocab_size
        self.slots = slots
        self.chunk = min(chunk, max(MIN_CHUNK, settings.context // 4))
        platforms = [device.platform for device in self.mesh.devices.flat]
        transpose = slots == 1 and platforms == ['cpu']
        with jax.set_mesh(self.mesh):

            @jax.jit
            def prepare(params):
                params = convert(unstack_layers(params))
                return transpose_params(params) if transpose else params

            self._prepare = prepare
            self._params = self._prepare(params)
            cache = new_cache(settings, slots, settings.context)
            if draft is None:
                self._programs = device_slots.make_programs(settings, settings.context)
            else:
                _check_draft(settings, draft[0], guesses)
                self._programs = speculative.make_programs(
                    settings, draft[0], guesses, settings.context
                )
                self._params = (self._params, self._prepare(draft[1]))
                cache = (cache, new_cache(draft[0], slots, settings.context))
            self._state = jax.jit(device_slots.empty_slots, static_argnums=(1, 2))(
                cache, settings.vocab_size, settings.context
            )
        self._all_allowed = jax.device_put(self._allow_all(), replicated(self.mesh))

    def update_weights(self, params) -> None:
        """Takes new weights of the model (a draft's stay); compiles nothing."""
        draft = self._params[1:] if isinstance(self._params, tuple) else ()
        old = self._params[0] if draft else self._params
        new = self._prepare(params)
        describe = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)
        if jax.tree.map(describe, new) != jax.tree.map(describe, old):
            raise ValueError('the weights differ in shape, dtype or sharding')
        self._params = (new, *draft) if draft else new

    def warm_up(self) -> None:
        """Compiles what reads prompts and copies blocks, but not `decode`."""
        sizes = {self._padded(length) for length in range(1, self.chunk + 1)}
        for size in sorted(sizes):
            padding = np.full(size, self.context, np.int32)
            zeros = np.zeros(size, np.int32)
            self._state, _ = self._programs.prefill(
                self._params, self._state, np.int32(0), zeros, padding, zeros, True
            )
        self.write_block(0, 0, self.read_block(0, 0))

    def prefill(
        self, slot: int, prompt: Sequence[int], start: int, end: int, score: bool
    ) -> StepOutput:
        """Reads tokens `start` to `end` (at most a chunk) of a prompt into a slot.

        Returns:
            (1, T), the first `end - start` valid: with `score`, the log-probabilities
            of the tokens after each.
        """
        length = end - start
        tokens, positions, targets = np.zeros((3, self._padded(length)), np.int32)
        positions[:] = self.context
        tokens[:length] = prompt[start:end]
        positions[:length] = range(start, end)
        targets[:length] = prompt[start + 1 : end + 1]
        self._state, output = self._programs.prefill(
            self._params, self._state, np.int32(slot), tokens, positions, targets, score
        )
        return output

    def start_slot(
        self, slot: int, prompt: Sequence[int], parameters: SamplingParameters
    ) -> None:
        """A slot that has read all but the last token decodes from the next step on."""
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
        self._state = device_slots.start_slot(
            self._state,
            np.int32(slot),
            np.int32(prompt[-1]),
            np.int32(len(prompt) - 1),
            np.uint32(parameters.seed),
            sampling,
            seen,
            bias,
        )

    def decode(self, grammars: Sequence[Grammar | None], detail: Detail) -> StepOutput:
        """Begins a step of all slots, and the copy of its output to the host.

        What `detail` leaves out of the output is None.
        """
        allowed = self._all_allowed
        if any(grammars):
            allowed = self._allow_all()
            for slot, grammar in enumerate(grammars):
                if grammar:
                    allowed[slot] = grammar.allowed()
            # With another sharding the program would compile again.
            allowed = jax.device_put(allowed, self._all_allowed.sharding)
        self._state, output = self._programs.decode(
            self._params, self._state, allowed, any(grammars), np.int32(detail)
        )
        copied = output[: NUM_FIELDS[detail]]
        for array in copied:
            array.copy_to_host_async()
        return StepOutput(*copied, *[None] * (len(output) - len(copied)))

    def stop_slot(self, slot: int) -> None:
        """The slot is idle from the next step."""
        self._state = device_slots.stop_slot(
            self._state, np.int32(slot), np.int32(self.context)
        )

    def read_block(self, slot: int, start: int):
        """A copy of a chunk in a slot's cache."""
        return device_slots.read_block(
            self._state, np.int32(slot), np.int32(start), self.chunk
        )

    def write_block(self, slot: int, start: int, block) -> None:
        """Writes such a copy into a slot."""
        self._state = device_slots.write_block(
            self._state, np.int32(slot), np.int32(start), block
        )

    def _allow_all(self):
        """uint32 (B, ceil(V / 32)), a bit a token."""
        return np.full((self.slots, -(-self.vocab_size // 32)), 2**32 - 1, np.uint32)

    def _padded(self, length: int) -> int:
        """The size of the program that reads so many tokens."""
        size = max(MIN_CHUNK, 1 << (length - 1).bit_length())
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
