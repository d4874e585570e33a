"""Which requests compute in a step: chunks of prompts, and then one decode step.

The host reads the tokens of a step while the device computes the next one; what was
drawn past a reply's end is thrown away.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import jax
import numpy as np

from gptjax.infer.model_runner import ModelRunner
from gptjax.infer.request import Update
from gptjax.infer.request_state import RequestState, read_token, required_detail
from gptjax.infer.slots import StepOutput

MAX_CHUNKS = 8  # of prompts, read in a step


class PrefixCache:
    """The keys and values of prompts' beginnings, those used last.

    A block is the cache of one full chunk of a prompt, and its key is all tokens up to
    its end. It holds what `prefill` wrote there, bit for bit, so a prompt whose blocks
    are in the cache goes on exactly as one that computes them.

    A block has `chunk` tokens; `capacity` is in bytes, and 0 stores nothing.
    """

    def __init__(self, chunk: int, capacity: int):
        self.chunk = chunk
        self.capacity = capacity
        self.bytes = 0
        self._blocks = OrderedDict()  # the tokens up to its end -> block

    def find(self, prompt: Sequence[int]) -> list:
        """The blocks that `prompt` begins with, in order."""
        keys = []
        for end in range(self.chunk, len(prompt) + 1, self.chunk):
            key = tuple(prompt[:end])
            if key not in self._blocks:
                break
            keys.append(key)
        self._mark_used(keys)
        return [self._blocks[key] for key in keys]

    def has(self, prompt: Sequence[int], end: int) -> bool:
        return tuple(prompt[:end]) in self._blocks

    def add(self, prompt: Sequence[int], end: int, block) -> None:
        """Stores the block that ends before token `end` of `prompt`."""
        size = _num_bytes(block)
        if size > self.capacity:
            return
        self._blocks[tuple(prompt[:end])] = block
        self.bytes += size
        earlier = (tuple(prompt[:at]) for at in range(self.chunk, end, self.chunk))
        self._mark_used([key for key in earlier if key in self._blocks])
        while self.bytes > self.capacity:
            _, dropped = self._blocks.popitem(last=False)
            self.bytes -= _num_bytes(dropped)

    def _mark_used(self, keys):
        """The beginning comes last: without it the others could not be found."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _num_bytes(block) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(block))


class Scheduler:
    """The requests that have a slot, and what a step computes for them.

    `requests` has the request of each slot, or None. `cached_tokens` of the
    `prompt_tokens` were in the prefix cache, which holds `prefix_bytes`.
    `end_request(request, last update)` calls `free_slot`.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prefix_bytes: int,
        end_request: Callable[[RequestState, Update], None],
    ):
        self.requests = [None] * runner.slots
        self._runner = runner
        self.prefix_cache = PrefixCache(runner.chunk, prefix_bytes)
        self._end_request = end_request
        self._pending = None  # (a step's StepOutput, the request of each slot)
        self.reset_counts()

    @property
    def idle(self) -> bool:
        """No request has a slot, and no step is being computed."""
        return self._pending is None and not any(self.requests)

    def reset_counts(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.reply_tokens = 0

    def clear_prefix_cache(self) -> None:
        """For new weights: others wrote what it holds."""
        cache = self.prefix_cache
        self.prefix_cache = PrefixCache(cache.chunk, cache.capacity)

    def clear(self) -> None:
        """Frees all slots, without an update to their requests."""
        self.requests = [None] * len(self.requests)
        self._pending = None

    def assign_slot(self, request: RequestState, slot: int) -> None:
        """Gives a free slot to a request; `copy_cached_prefix` comes next."""
        request.slot = slot
        self.requests[slot] = request

    def copy_cached_prefix(self, request: RequestState) -> None:
        """Copies the beginning of its prompt from the prefix cache to its slot."""
        self.prompt_tokens += len(request.prompt)
        if request.parameters.prompt_logprobs:
            return  # every chunk is computed again, for its scores
        for block in self.prefix_cache.find(request.prompt[:-1]):
            self._runner.write_block(request.slot, request.num_prefilled, block)
            request.num_prefilled += self.prefix_cache.chunk
        self.cached_tokens += request.num_prefilled

    def free_slot(self, request: RequestState) -> None:
        """Its slot is for others; `stop_decoding` comes next."""
        if request.slot is not None:
            self.requests[request.slot] = None

    def stop_decoding(self, request: RequestState) -> None:
        """The device decodes the slot that it had no longer."""
        if request.decoding:
            self._runner.stop_slot(request.slot)

    def step(self, whole_prompts: bool) -> bool:
        """Reads chunks of prompts and begins a decode step; False: nothing to do.

        `whole_prompts` reads all prompts to their ends before the decode step; else
        only as many chunks are read as do not hold up the running replies.
        """
        prefilling = self._prefill(whole_prompts)
        decoding = self._decoding_requests()
        if any(r and r.parameters.grammar for r in decoding):
            self._process_output()  # the last token decides which may follow
            decoding = self._decoding_requests()
        dispatched = None
        if any(decoding):
            grammars = [request and request.parameters.grammar for request in decoding]
            detail = max(required_detail(r.parameters) for r in decoding if r)
            dispatched = self._runner.decode(grammars, detail), decoding
        busy = bool(prefilling or dispatched or self._pending)
        self._process_output()
        self._pending = dispatched
        return busy

    def _decoding_requests(self):
        return [r if r and r.decoding else None for r in self.requests]

    def _has_slot(self, request):
        return self.requests[request.slot] is request

    def _prefill(self, whole_prompts: bool) -> bool:
        """Reads chunks of prompts, the oldest first; False: there is none to read."""
        running = [request for request in self.requests if request]
        prefilling = [request for request in running if not request.decoding]
        num_decoding = len(running) - len(prefilling)
        # With one running reply for many prompts, the prompts are what waits.
        chunks_left = min(max(1, len(prefilling) // max(1, num_decoding)), MAX_CHUNKS)
        if whole_prompts:
            chunks_left = math.inf
        for request in sorted(prefilling, key=lambda request: request.request_id):
            while chunks_left and self._has_slot(request) and not request.decoding:
                self._prefill_chunk(request)
                chunks_left -= 1
        return bool(prefilling)

    def _prefill_chunk(self, request):
        """Reads the next chunk of a prompt; the last token is left to `decode`."""
        prompt, cache = request.prompt, self.prefix_cache
        score = request.parameters.prompt_logprobs
        start = request.num_prefilled
        end = min(start + cache.chunk, len(prompt) - 1)
        if start < end:
            output = self._runner.prefill(request.slot, prompt, start, end, score)
            if score:
                request.prompt_outputs.append((end - start, output))
            if end - start == cache.chunk and cache.capacity:
                if not cache.has(prompt, end):
                    cache.add(prompt, end, self._runner.read_block(request.slot, start))
            request.num_prefilled = end
        if request.num_prefilled < len(prompt) - 1:
            return
        if score:
            request.on_update(Update(prompt=request.scored_prompt()))
        if request.max_tokens == 0:
            self._end_request(request, Update(finish='length'))
            return
        self._runner.start_slot(request.slot, prompt, request.parameters)
        request.decoding = True

    def _process_output(self):
        """Waits for the tokens of the last decode step, and updates their requests."""
        if self._pending is None:
            return
        output, requests = self._pending
        self._pending = None
        output = StepOutput(*(None if x is None else np.asarray(x) for x in output))
        for slot, request in enumerate(requests):
            for t in range(output.counts_B[slot]):
                if not request or not self._has_slot(request):
                    break  # free, or it ended at an earlier token
                self.reply_tokens += 1
                token = read_token(output, slot, t, request.parameters)
                update = request.append_token(token)
                if update.finish:
                    self._end_request(request, update)
                elif update.text or update.tokens:
                    request.on_update(update)
