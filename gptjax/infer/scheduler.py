"""What happens in a round: chunks of prompts are read, and a decode step is drawn.

The slots' side of the engine. The host looks at the tokens of a step while the device
computes the next one; what was drawn past a reply's end is thrown away.
"""

import math
from collections.abc import Callable

import numpy as np

from gptjax.infer.model_runner import Decoder
from gptjax.infer.prefix_cache import PrefixCache
from gptjax.infer.request import Update
from gptjax.infer.request_state import LiveRequest, detail_of, token_of
from gptjax.infer.slots import Drawn

MOST_CHUNKS = 8  # of prompts, read in a round


class Rounds:
    """The requests that have a slot, and what a round does with them.

    Attributes:
        requests: of each slot; None: it is free.
        prompt_tokens: of the prompts that got a slot.
        cached_tokens: of these, found in the prefix cache.
        reply_tokens: drawn.

    Args:
        decoder: whose slots they are.
        prefix_bytes: memory for the beginnings of earlier prompts.
        end: takes a request and its last update; is to `free` its slot.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix_bytes: int,
        end: Callable[[LiveRequest, Update], None],
    ):
        self.requests = [None] * decoder.slots
        self._decoder = decoder
        self._prefix = PrefixCache(decoder.chunk, prefix_bytes)
        self._end = end
        self._pending = None  # (a step's Drawn, the request of each slot)
        self.forget_counts()

    @property
    def idle(self) -> bool:
        """No request has a slot, and no step is on its way."""
        return self._pending is None and not any(self.requests)

    def forget_counts(self) -> None:
        self.prompt_tokens = self.cached_tokens = self.reply_tokens = 0

    def forget_prompts(self) -> None:
        """Empties the prefix cache: other weights wrote it."""
        self._prefix = PrefixCache(self._prefix.chunk, self._prefix.capacity)

    def clear(self) -> None:
        """Frees all slots without a word."""
        self.requests = [None] * len(self.requests)
        self._pending = None

    def seat(self, request: LiveRequest, slot: int) -> None:
        """Gives a free slot to a request; `begin` comes next."""
        request.slot = slot
        self.requests[slot] = request

    def begin(self, request: LiveRequest) -> None:
        """Takes what is known of the beginning of its prompt."""
        self.prompt_tokens += len(request.prompt)
        if request.parameters.prompt_logprobs:
            return  # every chunk is computed again, for its scores
        for block in self._prefix.find(request.prompt[:-1]):
            self._decoder.write_block(request.slot, request.read, block)
            request.read += self._prefix.chunk
        self.cached_tokens += request.read

    def free(self, request: LiveRequest) -> None:
        """Its slot is for others; `park` comes next."""
        self.requests[request.slot] = None

    def park(self, request: LiveRequest) -> None:
        """The slot that it had decodes no longer."""
        if request.decoding:
            self._decoder.park(request.slot)

    def run(self, patient: bool) -> bool:
        """One round; False: there was nothing to do.

        Args:
            patient: read all prompts before the decode step; else as many chunks as
                running replies can bear.
        """
        reading = self._read_chunks(patient)
        decoding = self._decoding()
        if any(r and r.parameters.grammar for r in decoding):
            self._settle()  # the last token decides which may follow
            decoding = self._decoding()
        dispatched = self._dispatch(decoding) if any(decoding) else None
        busy = bool(reading or dispatched or self._pending)
        self._settle()
        self._pending = dispatched
        return busy

    def _decoding(self):
        return [r if r and r.decoding else None for r in self.requests]

    def _lives(self, request):
        return self.requests[request.slot] is request

    def _read_chunks(self, patient: bool) -> bool:
        """Reads prompts, the oldest first; False: there is none to read."""
        running = [request for request in self.requests if request]
        reading = [request for request in running if not request.decoding]
        decoding = len(running) - len(reading)
        # With one running reply for many prompts, the prompts are what waits.
        bearable = min(max(1, len(reading) // max(1, decoding)), MOST_CHUNKS)
        left = math.inf if patient else bearable
        for request in sorted(reading, key=lambda request: request.ticket):
            while left and self._lives(request) and not request.decoding:
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
        detail = max(detail_of(r.parameters) for r in decoding if r)
        return self._decoder.decode(grammars, detail), decoding

    def _settle(self):
        """Tells what the last step drew."""
        if self._pending is None:
            return
        drawn, requests = self._pending
        self._pending = None
        drawn = Drawn(*(None if x is None else np.asarray(x) for x in drawn))
        for slot, request in enumerate(requests):
            for place in range(drawn.counts_B[slot]):
                if request and self._lives(request):
                    self._take(
                        request, token_of(drawn, slot, place, request.parameters)
                    )

    def _take(self, request, token):
        self.reply_tokens += 1
        update = request.take(token)
        if update.finish:
            self._end(request, update)
        elif update.text or update.tokens:
            request.listen(update)
