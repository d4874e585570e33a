"""Exact de-duplication: of documents that say the same, the first stays."""

import hashlib
import unicodedata


def is_duplicate(text: str, seen: set[bytes], count) -> bool:
    """Whether the text was seen before.

    Two texts are the same if they differ only in upper and lower case, in blanks
    and line breaks, or in how Unicode writes a character. Which one of two stays
    is settled by the order of the sources (by name) and within them, so that it is
    the same on every machine.

    Args:
        seen: hashes of the texts before, 16 bytes each; one set for all sources.
        count: the `StepCount` of `drop_duplicates`.
    """
    plain = ' '.join(unicodedata.normalize('NFKC', text).casefold().split())
    key = hashlib.blake2b(plain.encode(), digest_size=16).digest()
    if key in seen:
        count.documents_dropped += 1
        count.characters_removed += len(text)
        return True
    seen.add(key)
    return False
