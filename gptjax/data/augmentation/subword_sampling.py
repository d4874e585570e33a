"""Subword regularisation: other segmentations of a text than the tokenizer's own.

SentencePiece can sample segmentations, but its random numbers belong to a thread and
depend on everything the thread has sampled before, and on the C++ library. So they are
sampled here, from the scores of the model's pieces.
"""

import bisect
import functools
import heapq
import itertools
import math
import re

from gptjax.core.console import UserError
from gptjax.data.augmentation.random_draws import Draws
from gptjax.tokenizer.tokenizer import Tokenizer

WORD = re.compile(' ?[^ ]+| ')  # a piece has a space only at its beginning
UNKNOWN_PENALTY = 10.0  # of a character that is no piece, as in SentencePiece
CACHED_WORDS = 2**16


class SubwordSampler:
    """Samples token ids of a text; decoded they are the text.

    Args:
        alpha: for BPE the share of the merges that is dropped (Provilkov et al. 2020);
            for unigram a segmentation has the probability p(x)^alpha / sum p^alpha
            (Kudo 2018, equation 8, over all segmentations), so that a smaller alpha
            gives rarer segmentations.
    """

    def __init__(self, tokenizer: Tokenizer, alpha: float):
        if not isinstance(tokenizer, Tokenizer):
            raise UserError(
                'data.augment: subword_regularisation needs a tokenizer of the stage '
                '`tokenizer`, and this one is imported: leave it out'
            )
        self._alpha = alpha
        pieces = tokenizer.read_pieces()
        self._ids = {piece: token for piece, (token, _) in pieces.items()}
        self._scores = {piece: score for piece, (_, score) in pieces.items()}
        self._byte_ids = tokenizer.byte_ids
        self._longest = max(map(len, self._scores))
        # Scores of BPE are 0, -1, -2, …; those of unigram are log-probabilities.
        is_unigram = any(score % 1 for score in self._scores.values())
        self._split = self._sample_unigram if is_unigram else self._drop_merges
        self._lattice = functools.lru_cache(CACHED_WORDS)(self._make_lattice)

    def encode(self, text: str, draws: Draws) -> list[int]:
        return [
            *itertools.chain.from_iterable(map(self._to_ids, self._split(text, draws)))
        ]

    def _to_ids(self, piece: str) -> list[int]:
        if piece in self._ids:
            return [self._ids[piece]]
        return [self._byte_ids[byte] for byte in piece.encode()]

    def _drop_merges(self, text: str, draws: Draws) -> list[str]:
        """BPE in which each step drops possible merges (Provilkov et al., algorithm 1).

        In each step each merge that a word allows is dropped with probability alpha,
        and of the others that of the highest score is made, the leftmost of equals. A
        word is ready when nothing is left. Merges worse than the one that is made need
        no random number. With alpha 0.1 a text has 1.12 times its tokens (vocabulary
        of 1,024); SentencePiece, which drops a merge for longer, has 1.22 times.
        """
        return [
            *itertools.chain.from_iterable(
                self._merge_word(word, draws) for word in WORD.findall(text)
            )
        ]

    def _merge_word(self, word: str, draws: Draws) -> list[str]:
        scores, alpha, size = self._scores, self._alpha, len(word)
        parts = list(word)  # '' where a part was merged into the one before it
        after, before = [*range(1, size + 1)], [*range(-1, size - 1)]
        merges, dropped = [], []

        def add_merge(left: int) -> None:
            if left >= 0 and after[left] < size:
                piece = parts[left] + parts[after[left]]
                if piece in scores:
                    heapq.heappush(merges, (-scores[piece], left, piece))

        for left in range(size - 1):
            add_merge(left)
        while merges:
            merge = _, left, piece = heapq.heappop(merges)
            right = after[left]
            if not parts[left] or right == size or parts[left] + parts[right] != piece:
                continue  # one of the two has been merged with another part
            if draws() < alpha:
                dropped.append(merge)
                continue
            parts[left], parts[right] = piece, ''
            after[left] = after[right]
            if after[right] < size:
                before[after[right]] = left
            add_merge(before[left])
            add_merge(left)
            while dropped:  # only in this step
                heapq.heappush(merges, dropped.pop())
        return [part for part in parts if part]

    def _sample_unigram(self, text: str, draws: Draws) -> list[str]:
        """Forward filtering, backward sampling, word by word."""
        pieces = []
        for word in WORD.findall(text):
            lattice, end, backwards = self._lattice(word), len(word), []
            while end:
                starts, sums = lattice[end]
                start = starts[
                    bisect.bisect_right(sums, draws() * sums[-1], hi=len(sums) - 1)
                ]
                backwards.append(word[start:end])
                end = start
            pieces += backwards[::-1]
        return pieces

    def _make_lattice(self, word: str) -> list[tuple[list[int], list[float]]]:
        """For each end of a piece: the possible starts, and cumulated probabilities."""
        unknown = min(self._scores.values()) - UNKNOWN_PENALTY
        totals, lattice = [0.0], [([], [])]  # log of the sum over segmentations
        for end in range(1, len(word) + 1):
            starts, logs = [], []
            for start in range(max(0, end - self._longest), end):
                score = self._scores.get(word[start:end])
                if score is None and start == end - 1:
                    score = unknown
                if score is not None:
                    starts.append(start)
                    logs.append(totals[start] + self._alpha * score)
            largest = max(logs)
            sums = [*itertools.accumulate(math.exp(log - largest) for log in logs)]
            totals.append(largest + math.log(sums[-1]))
            lattice.append((starts, sums))
        return lattice
