"""Near duplicates: texts that share most of their 5-grams of words.

MinHash (Broder 1997, "On the resemblance and containment of documents") estimates the
Jaccard similarity of two texts: the number of 5-grams that both have, divided by the
number that at least one has. Locality-sensitive hashing finds the pairs to compare.

    text ── shingles ── sign ──▶ signature ── band_keys ──▶ keys
    documents with an equal key, in source order ── find_match ──▶ (earlier id, share)

`sign` and `band_keys` are pure functions of a document, and `find_match` is one of a
group of documents with an equal key. So a distributed runner maps the first two, groups
by key, and takes the earliest of the matches that the groups of a document give.
`NearDuplicateIndex` does the same for documents that come one after the other.

A document is dropped if any earlier one is similar, also one that was dropped itself:
otherwise a group could not decide alone. So the first document of a chain stays.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from heapq import merge
from itertools import groupby, islice

import numpy as np

from gptjax.data.quality.words import join_ngrams, split_words

SHINGLE_WORDS = 5  # as FineWeb (Penedo et al. 2024, section 3.4)
# Hash functions: the standard deviation of an estimate of 0.8 is 0.025.
PERMUTATIONS = 256
SEED = 1  # of the hash functions: equal on all machines
RECALL = 0.999  # probability that two texts at the threshold have an equal key
COMPARED_AT_ONCE = 1000


def shingles(text: str) -> set[str]:
    """The 5-grams of a text; a shorter text is its only shingle."""
    words = split_words(text)
    return {*join_ngrams(words, SHINGLE_WORDS)} or {' '.join(words) or text.strip()}


def sign(text: str) -> np.ndarray:
    """The MinHash signature of a text, uint32 [PERMUTATIONS].

    Two signatures are equal in a share of places that estimates the similarity.
    """
    minhash = _empty_minhash().copy()
    minhash.update_batch([shingle.encode() for shingle in shingles(text)])
    return minhash.hashvalues


def choose_rows(similarity: float) -> int:
    """Values of a signature in a band: the most that find pairs at the threshold.

    Two texts of similarity s have an equal key with probability 1 - (1 - s^rows)^bands.
    More rows give fewer pairs to compare. 0.8 → 7 rows, 36 bands
    """

    def recall(rows):
        return 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows)

    return max(
        (n for n in range(1, PERMUTATIONS + 1) if recall(n) >= RECALL), default=1
    )


def band_keys(signature: np.ndarray, rows: int) -> Iterator[int]:
    """A 64-bit key for each band of a signature."""
    for band in range(PERMUTATIONS // rows):
        values = signature[band * rows : (band + 1) * rows].tobytes()
        digest = hashlib.blake2b(values, digest_size=8, salt=band.to_bytes(2)).digest()
        yield int.from_bytes(digest)


def find_match(
    signature: np.ndarray, earlier: Iterable[tuple[str, np.ndarray]], similarity: float
) -> tuple[str, float] | None:
    """(id, estimated similarity) of the first document that is similar enough.

    Args:
        earlier: (id, signature) of the documents before this one that have an equal
            key, in source order. No more are read than are compared.
    """
    earlier, size = iter(earlier), 1  # the first one matches most often
    while part := [*islice(earlier, size)]:
        size = min(2 * size, COMPARED_AT_ONCE)
        estimates = (np.stack([other for _, other in part]) == signature).mean(axis=1)
        (similar,) = np.nonzero(estimates >= similarity)
        if similar.size:
            return part[similar[0]][0], float(estimates[similar[0]])
    return None


class NearDuplicateIndex:
    """The signatures and keys of the documents so far: about 7 KB for each.

    Of equal signatures the first is stored: what is similar to one is so to all.
    """

    def __init__(self, similarity: float):
        self._similarity, self._rows = similarity, choose_rows(similarity)
        self._documents = []  # (id, signature)
        self._groups = defaultdict(list)  # key -> numbers of documents, ascending
        self._signatures = set()  # 16-byte hashes

    def add(self, identity: str, signature: np.ndarray) -> tuple[str, float] | None:
        """Adds a document; returns what `find_match` does."""
        groups = [self._groups[key] for key in band_keys(signature, self._rows)]
        earlier = (self._documents[number] for number, _ in groupby(merge(*groups)))
        found = find_match(signature, earlier, self._similarity)
        key = hashlib.blake2b(signature.tobytes(), digest_size=16).digest()
        if key not in self._signatures:
            self._signatures.add(key)
            for group in groups:
                group.append(len(self._documents))
            self._documents.append((identity, signature))
        return found


@cache
def _empty_minhash():
    from datasketch import MinHash

    return MinHash(PERMUTATIONS, SEED, scheme='affine32')
