"""The model runner: the weights and the slots on the device, called by the scheduler.

The methods start work on the device and do not wait for it. They have to be called
under `jax.set_mesh(runner.mesh)`.
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
from gptjax.infer.sampling import make_sampling
from gptjax.infer.slots import Detail, StepOutput
from gptjax.models.gpt import unstack_layers
from gptjax.models.linear import transpose_params
from gptjax.parallel.mesh import get_mesh
from gptjax.parallel.sharding import replicated

# The number of fields of `StepOutput` that are copied to the host.
NUM_FIELDS = {Detail.TOKEN: 2, Detail.LOGPROB: 3, Detail.ALTERNATIVES: 5}

MIN_CHUNK = 16  # tokens; a shorter last chunk of a prompt is padded


class ModelRunner:
    """The weights, the state of the slots, and the programs that compute them.

    The arguments are those of `Engine`; `chunk` is at most a quarter of the model's
    context, so that prompts are cut in the same way whatever the length of the cache.
    """

    def __init__(
        self,
        settings: FrozenConfigDict,
        params,
        context: int,
        slots: int,
        chunk: int,
        new_cache: Callable,
        convert: Callable,
        draft: tuple[FrozenConfigDict, Any] | None,
        guesses: int,
    ):
        self.mesh = get_mesh(params)
        self.context = context
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
            cache = new_cache(settings, slots, context)
            if draft is None:
                self._programs = device_slots.make_programs(settings, context)
            else:
                _check_draft(settings, draft[0], context, guesses)
                self._programs = speculative.make_programs(
                    settings, draft[0], guesses, context
                )
                self._params = (self._params, self._prepare(draft[1]))
                cache = (cache, new_cache(draft[0], slots, context))
            self._state = jax.jit(device_slots.empty_slots, static_argnums=(1, 2))(
                cache, settings.vocab_size, context
            )
        # (B, ceil(V / 32)), one bit for each token.
        shape = slots, -(-settings.vocab_size // 32)
        self._allow_all = np.full(shape, 2**32 - 1, np.uint32)
        self._allow_all_on_device = jax.device_put(
            self._allow_all, replicated(self.mesh)
        )

    def update_weights(self, params) -> None:
        """Replaces the weights without compiling; a draft model keeps its weights."""
        with_draft = isinstance(self._params, tuple)
        old, *draft = self._params if with_draft else (self._params,)
        new = self._prepare(params)
        describe = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)
        if jax.tree.map(describe, new) != jax.tree.map(describe, old):
            raise ValueError('the weights differ in shape, dtype or sharding')
        self._params = (new, *draft) if draft else new

    def warm_up(self) -> None:
        """Compiles the prefill of every chunk size and the copying of blocks."""
        sizes = {self._padded_size(length) for length in range(1, self.chunk + 1)}
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
        """Prefills tokens `start` to `end`, at most one chunk, of a prompt.

        Returns:
            With `score`, log-probabilities (1, T) of the prompt's next tokens
            `start + 1` to `end + 1`; the first `end - start` are valid.
        """
        length = end - start
        tokens, positions, targets = np.zeros((3, self._padded_size(length)), np.int32)
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
        """Makes a prefilled slot decode from the next step on."""
        seen = np.zeros(self.vocab_size, bool)
        seen[list(prompt)] = True
        bias = np.zeros(self.vocab_size, np.float32)
        for token, value in parameters.logit_bias.items():
            bias[token] = value
        self._state = device_slots.start_slot(
            self._state,
            np.int32(slot),
            np.int32(prompt[-1]),
            np.int32(len(prompt) - 1),
            np.uint32(parameters.seed),
            make_sampling(parameters),
            seen,
            bias,
        )

    def decode(self, grammars: dict[int, Grammar], detail: Detail) -> StepOutput:
        """Starts a decode step of all slots, and the copy of its output to the host.

        `grammars` has the grammar of each slot that has one. Fields of the output that
        `detail` does not require are None.
        """
        allowed = self._allow_all_on_device
        if grammars:
            allowed = self._allow_all.copy()
            for slot, grammar in grammars.items():
                allowed[slot] = grammar.allowed()
            # Another sharding would compile the program again.
            allowed = jax.device_put(allowed, self._allow_all_on_device.sharding)
        self._state, output = self._programs.decode(
            self._params, self._state, allowed, bool(grammars), np.int32(detail)
        )
        copied = output[: NUM_FIELDS[detail]]
        for array in copied:
            array.copy_to_host_async()
        return StepOutput(*copied, *[None] * (len(output) - len(copied)))

    def stop_slot(self, slot: int) -> None:
        """Makes a slot idle from the next step on."""
        self._state = device_slots.stop_slot(
            self._state, np.int32(slot), np.int32(self.context)
        )

    def read_block(self, slot: int, start: int):
        """A copy of one chunk of a slot's cache, from position `start`."""
        return device_slots.read_block(
            self._state, np.int32(slot), np.int32(start), self.chunk
        )

    def write_block(self, slot: int, start: int, block) -> None:
        """Writes a block of `read_block` to a slot."""
        self._state = device_slots.write_block(
            self._state, np.int32(slot), np.int32(start), block
        )

    def _padded_size(self, length: int) -> int:
        """The next power of two, at least MIN_CHUNK, at most the chunk."""
        size = max(MIN_CHUNK, 1 << (length - 1).bit_length())
        return min(size, max(self.chunk, length))


def _check_draft(settings, draft, context, guesses):
    if draft.vocab_size != settings.vocab_size:
        raise UserError(
            f'draft.vocab_size={draft.vocab_size} differs from '
            f'model.vocab_size={settings.vocab_size}: train the draft model with the '
            "model's tokenizer"
        )
    if draft.context < context and draft.position == 'learned':
        raise UserError(
            f'draft.context={draft.context} is shorter than the context of {context} '
            'in use: train a draft model with a context at least as long, or use a '
            f'shorter one (--context={draft.context})'
        )
    if guesses < 1:
        raise UserError(f'guesses={guesses}: use a positive number')


# ---- the number of compilations, to show that serving compiles nothing

_COMPILATION = '/jax/core/compile/backend_compile_duration'
_num_compilations = 0


def count_compilations() -> int:
    """Programs that this process compiled since the import of this module."""
    return _num_compilations


def _count_event(event: str, duration: float, **details) -> None:
    global _num_compilations
    _num_compilations += event == _COMPILATION


jax.monitoring.register_event_duration_secs_listener(_count_event)
