"""Exact de-duplication: of documents that say the same, the first stays."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator


def drop_duplicates(
    documents: Iterable[tuple[str, str]], seen: set[bytes], step
) -> Iterator[tuple[str, str]]:
    """Passes on the documents whose text was not seen before.

    Two texts are the same if they differ only in upper and lower case, in blanks
    and line breaks, or in how Unicode writes a character. Which one of two stays
    is settled by the order of the sources (by name) and within them, so that it is
    the same on every machine.

    Args:
        documents: (id, text).
        seen: hashes of the texts before; grows by 16 bytes (some 100 in memory) a
            document. Pass the same set for every source.
        step: a `clean.StepCount`, which counts what is dropped.
    """
    for identity, text in documents:
        key = text_key(text)
        if key in seen:
            step.documents_dropped += 1
            step.characters_removed += len(text)
            continue
        seen.add(key)
        yield identity, text


def text_key(text: str) -> bytes:
    """A 16-byte hash, equal for texts that differ only as said above."""
    plain = ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()
