"""The scheduler: what each step computes for the requests that have a slot.

A step prefills chunks of prompts and decodes one token for every running reply.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import takewhile

import jax
import numpy as np

from gptjax.infer.model_runner import ModelRunner
from gptjax.infer.request import Update
from gptjax.infer.request_state import RequestState, read_token, required_detail
from gptjax.infer.slots import StepOutput

MAX_CHUNKS = 8  # of prompts, prefilled in one step


class PrefixCache:
    """Keys and values of the beginnings of recent prompts; drops the oldest first.

    A block is the cache of one full chunk of a prompt. Its key is the prompt up to the
    end of that chunk. With chunks of two tokens, the prompt 5 6 7 8 9 has the blocks
    (5, 6) and (5, 6, 7, 8).

    A block is a bitwise copy of what prefill wrote, so a request that starts from
    blocks gives the reply that it gives without them.

    Args:
        chunk: tokens in a block.
        capacity: in bytes; 0 stores nothing.
    """

    def __init__(self, chunk: int, capacity: int):
        self.chunk = chunk
        self.capacity = capacity
        self.clear()

    def clear(self) -> None:
        self.bytes = 0
        self._blocks = OrderedDict()  # tokens up to the block's end -> block

    def find(self, prompt: Sequence[int]) -> list:
        """The blocks of the longest cached beginning of `prompt`, in order."""
        keys = list(takewhile(self._blocks.__contains__, self._keys(prompt)))
        self._mark_used(keys)
        return [self._blocks[key] for key in keys]

    def has(self, prompt: Sequence[int]) -> bool:
        """Whether the block that ends with the last token of `prompt` is cached."""
        return tuple(prompt) in self._blocks

    def add(self, prompt: Sequence[int], block) -> None:
        """Stores the block that ends with the last token of `prompt`."""
        size = _num_bytes(block)
        if size > self.capacity:
            return
        self._blocks[tuple(prompt)] = block
        self.bytes += size
        self._mark_used([key for key in self._keys(prompt) if key in self._blocks])
        while self.bytes > self.capacity:
            _, oldest = self._blocks.popitem(last=False)
            self.bytes -= _num_bytes(oldest)

    def _keys(self, prompt):
        ends = range(self.chunk, len(prompt) + 1, self.chunk)
        return (tuple(prompt[:end]) for end in ends)

    def _mark_used(self, keys):
        # In reverse order: a prompt's first block is dropped last, as `find` cannot
        # reach the later blocks without it.
        for key in reversed(keys):
            self._blocks.move_to_end(key)


def _num_bytes(block) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(block))


class Scheduler:
    """The requests that have a slot, and the steps that compute them.

    Args:
        prefix_bytes: capacity of the prefix cache.
        end_request: called with a request and its last update; it sets the request's
            entry in `requests` to None.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prefix_bytes: int,
        end_request: Callable[[RequestState, Update], None],
    ):
        self.requests = [None] * runner.slots  # the request of each slot, or None
        self.prefix_cache = PrefixCache(runner.chunk, prefix_bytes)
        self._runner = runner
        self._end_request = end_request
        # The decode step that the device computes: (StepOutput, {slot: request}).
        self._pending = None
        self.reset_counts()

    @property
    def idle(self) -> bool:
        """No request has a slot, and the device computes no step."""
        return self._pending is None and not any(self.requests)

    def reset_counts(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.reply_tokens = 0

    def clear(self) -> None:
        """Frees all slots, without an update to their requests."""
        self.requests = [None] * len(self.requests)
        self._pending = None

    def step(self, whole_prompts: bool) -> bool:
        """Prefills, starts a decode step, and reads the tokens of the last one.

        The host reads the tokens of one decode step while the device computes the
        next. Tokens that were decoded after the end of a reply are dropped.

        Args:
            whole_prompts: prefill all prompts completely before the decode step.
                Otherwise prefill few chunks, so that running replies are not delayed.

        Returns:
            Whether there was work to do.
        """
        prefilling = self._prefill(whole_prompts)

        # A grammar allows tokens depending on the last one, so that one is read first.
        if any(r.parameters.grammar for r in self._decoding_requests().values()):
            self._process_output()

        started = None
        if requests := self._decoding_requests():
            grammars = {
                slot: request.parameters.grammar
                for slot, request in requests.items()
                if request.parameters.grammar
            }
            detail = max(required_detail(r.parameters) for r in requests.values())
            started = self._runner.decode(grammars, detail), requests

        had_work = bool(prefilling or started or self._pending)
        self._process_output()
        self._pending = started
        return had_work

    def _decoding_requests(self) -> dict[int, RequestState]:
        """{slot: request} of the requests whose prompt is prefilled."""
        return {slot: r for slot, r in enumerate(self.requests) if r and r.decoding}

    def copy_cached_prefix(self, request: RequestState) -> None:
        """Copies the cached beginning of the prompt to the request's slot."""
        self.prompt_tokens += len(request.prompt)
        if request.parameters.prompt_logprobs:
            return  # the scores come from prefill
        for block in self.prefix_cache.find(request.prompt[:-1]):
            self._runner.write_block(request.slot, request.num_prefilled, block)
            request.num_prefilled += self.prefix_cache.chunk
        self.cached_tokens += request.num_prefilled

    def _prefill(self, whole_prompts: bool) -> bool:
        """Prefills chunks, the oldest request first; False if no prompt needs it."""
        running = [request for request in self.requests if request]
        prefilling = [request for request in running if not request.decoding]
        num_decoding = len(running) - len(prefilling)
        # One chunk delays the running replies the least. If more prompts wait than
        # replies run, more chunks fill the batch sooner.
        chunks_left = min(max(1, len(prefilling) // max(1, num_decoding)), MAX_CHUNKS)
        if whole_prompts:
            chunks_left = math.inf
        for request in sorted(prefilling, key=lambda request: request.request_id):
            while chunks_left and self._has_slot(request) and not request.decoding:
                self._prefill_chunk(request)
                chunks_left -= 1
        return bool(prefilling)

    def _prefill_chunk(self, request):
        """Prefills the next chunk of a prompt, except the last token.

        The first decode step reads the last token.
        """
        prompt, cache = request.prompt, self.prefix_cache
        score = request.parameters.prompt_logprobs
        start = request.num_prefilled
        end = min(start + cache.chunk, len(prompt) - 1)
        if start < end:
            output = self._runner.prefill(request.slot, prompt, start, end, score)
            if score:
                request.prompt_outputs.append((end - start, output))
            if end - start == cache.chunk and cache.capacity:
                if not cache.has(prompt[:end]):
                    block = self._runner.read_block(request.slot, start)
                    cache.add(prompt[:end], block)
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
        """Waits for the pending decode step and gives its tokens to their requests."""
        if self._pending is None:
            return
        output, requests = self._pending
        self._pending = None
        output = StepOutput(*(None if x is None else np.asarray(x) for x in output))
        for slot, request in requests.items():
            for t in range(output.counts_B[slot]):
                if not self._has_slot(request):
                    break  # it was cancelled, or the reply has ended
                self.reply_tokens += 1
                token = read_token(output, slot, t, request.parameters)
                update = request.append_token(token)
                if update.finish:
                    self._end_request(request, update)
                elif update.text or update.tokens:
                    request.on_update(update)

    def _has_slot(self, request):
        return self.requests[request.slot] is request
