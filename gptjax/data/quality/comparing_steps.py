"""Runs the steps that compare a document with others, and lists what they removed.

RUN/documents/removed.jsonl, RUN/dialogue/removed.jsonl
    {"id": "web/7", "source": "web", "step": "drop_near_duplicates",
     "match": "books/3", "similarity": 0.91, "text": "the first 200 characters"}
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.data.cleaning.cleaning_steps import (
    DROP_DUPLICATES,
    DROP_NEAR_DUPLICATES,
    Options,
    StepCount,
    is_duplicate,
)
from gptjax.data.quality.near_duplicates import NearDuplicateIndex, sign

REMOVED = 'removed.jsonl'
LISTED = (DROP_NEAR_DUPLICATES,)  # steps that list what they removed
PREPARED = (DROP_NEAR_DUPLICATES,)  # steps that `prepare_text` works for
LISTED_CHARACTERS = 200


def list_files_of(steps: Iterable[str]) -> list[str]:
    """The files that these steps write."""
    return [REMOVED] if {*LISTED} & {*steps} else []


def prepare_text(step: str, text: str, options: Options):
    """What `Comparisons.compare` needs of a text: a pure function, for any process."""
    return sign(text) if step == DROP_NEAR_DUPLICATES else None


class Comparisons:
    """The documents of all sources so far, as the comparing steps need them."""

    def __init__(self, data: ConfigDict, steps: Iterable[str], folder: Path):
        self._seen = set()
        self._near = NearDuplicateIndex(data.near_duplicate_similarity)
        self._file = None
        for name in list_files_of(steps):
            self._file = open(folder / name, 'w', encoding='utf-8')

    def __enter__(self) -> 'Comparisons':
        return self

    def __exit__(self, *_) -> None:
        if self._file:
            self._file.close()

    def compare(
        self,
        step: str,
        source: str,
        identity: str,
        text: str,
        prepared,
        count: StepCount,
    ) -> str | None:
        """The text, or None if the step drops it; call it in the order of documents.

        Args:
            prepared: the value of `prepare_text`.
        """
        if step == DROP_DUPLICATES:
            return None if is_duplicate(text, self._seen, count) else text
        found = self._near.add(f'{source}/{identity}', prepared)
        if found is None:
            return text
        match, similarity = found
        count.documents_dropped += 1
        count.characters_removed += len(text)
        record = dict(
            id=f'{source}/{identity}',
            source=source,
            step=step,
            match=match,
            similarity=round(similarity, 4),
            text=text[:LISTED_CHARACTERS],
        )
        self._file.write(json.dumps(record, ensure_ascii=False) + '\n')
        return None
