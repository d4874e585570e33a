"""Reads the sources of a run again, and traces what each cleaning step does to them.

RUN/documents is not changed. At most CHARACTERS are read, the first ones of each
source. Samples are the documents with the smallest hashes, so that the same sources
give the same page.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.hashing import hash_integer
from gptjax.data.cleaning.cleaning_steps import (
    DROP_DUPLICATES,
    REPEATED_SPANS,
    STEPS,
    choose_steps,
    hash_text,
    read_options,
)
from gptjax.data.quality.quality_rules import find_spans, remove_repeated_spans
from gptjax.data.sources.open_source import open_source
from gptjax.data.sources.record_fields import read_fields
from gptjax.data.sources.records import Licences
from gptjax.eval.report.text_difference import excerpt, mark_difference

CHARACTERS = 20_000_000  # that are read again, an equal share for each source
SAMPLES = 3  # that a step changed, and that it dropped
SAMPLED_DOCUMENTS = 400  # of a source, for languages and tokens
SAMPLED_CHARACTERS = 10_000  # of each of these
RECORDS = 2_000  # whose fields are counted
VALUE_CHARACTERS = 60  # of a field's value
# Fields that say where a text comes from or who speaks.
FIELDS = (
    *('url', 'link', 'source', 'site', 'domain', 'host'),
    *('speaker', 'author', 'user', 'role', 'sender', 'messages', 'conversations'),
    *('language', 'lang', 'category', 'categories', 'topic', 'license', 'licence'),
)
SPEAKER_FIELDS = ('name', 'speaker', 'sender', 'role', 'from')  # of a message
_LINK = re.compile(r'https?://(?:www\.)?([\w.-]+\w)')


class HashSample:
    """The `size` values whose keys have the smallest hashes, in the order of these."""

    def __init__(self, size: int):
        self.size = size
        self._heap = []  # (-hash, value), the largest hash first

    def add(self, make: Callable, *key) -> None:
        """Adds `make()`, if the hash of `key` is among the smallest."""
        place = -hash_integer(*key)
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (place, len(self._heap), make()))
        elif place > self._heap[0][0]:
            heapq.heapreplace(self._heap, (place, self._heap[0][1], make()))

    def values(self) -> list:
        return [value for *_, value in sorted(self._heap, reverse=True)]


def survey_sources(
    config: ConfigDict, workdir: Path
) -> tuple[dict[str, dict], Counter]:
    """What `_survey_source` finds in each of data.sources.

    Also the documents of a source that 'drop_duplicates' drops as equal to one of
    another source.
    """
    data = config.data
    removed = {(line['step'], line['id']) for line in read_removed(workdir)}
    characters = CHARACTERS // len(data.sources)
    options, texts, spans, across = read_options(data), {}, set(), Counter()
    surveys = {
        name: _survey_source(
            name,
            data,
            workdir,
            characters,
            partial(_compare, options, texts, spans, removed, across, name),
        )
        for name in data.sources
    }
    return surveys, across


def read_removed(workdir: Path) -> Iterator[dict]:
    """The lines of RUN/documents/removed.jsonl: what comparisons removed."""
    path = workdir / 'documents' / 'removed.jsonl'
    if path.exists():
        yield from storage.read_jsonl(path)


def _survey_source(
    name: str,
    data: ConfigDict,
    workdir: Path,
    characters: int,
    compare: Callable,
) -> dict:
    """Figures and samples of a source.

    Args:
        characters: that are read.
        compare: (step, id, text) → text or None, for a step that compares documents.

    Returns:
        read, kept: the characters of each document.
        is_whole: whether all of the source was read.
        samples: step → 'changed', 'dropped' → samples.
        documents: the beginnings of SAMPLED_DOCUMENTS kept documents.
        fields: field of the records, or 'links in the text' → Counter of its values.
    """
    source = data.sources[name]
    steps = choose_steps(f'data.sources.{name}', source, data)
    samples = {
        step: dict(changed=HashSample(SAMPLES), dropped=HashSample(SAMPLES))
        for step in steps
    }
    documents, links = HashSample(SAMPLED_DOCUMENTS), Counter()
    read, kept, is_whole = [], [], True
    opened = open_source(name, source, workdir / 'datasets', Licences(data.licences))
    left = characters
    for identity, text in opened.read(lambda amount: None):
        if left <= 0:
            is_whole = False
            break
        left -= len(text)
        read.append(len(text))
        if not text or text.isspace():
            continue
        known = f'{name}/{identity}'
        for step, before, after in _trace(known, text, steps, data, compare):
            text = after
            _add_sample(samples[step], step, known, before, after)
        if text is None:
            continue
        kept.append(len(text))
        links.update(_LINK.findall(text) if '://' in text else ())
        documents.add(lambda text=text: text[:SAMPLED_CHARACTERS], known)
    fields = {'links in the text': links} if links else {}
    records = read_fields(name, source, workdir / 'datasets', FIELDS)
    fields |= count_values(islice(records, min(RECORDS, len(read))))
    return dict(
        read=read,
        kept=kept,
        is_whole=is_whole,
        samples={
            step: {
                kind: [_mark_sample(*values) for values in sample.values()]
                for kind, sample in kinds.items()
            }
            for step, kinds in samples.items()
        },
        documents=documents.values(),
        fields=fields,
    )


def _trace(identity, text, steps, data, compare) -> Iterator[tuple]:
    """Yields (step, text before, text after or None) until a step drops the text."""
    options = read_options(data)
    for step in steps:
        if step in STEPS:
            after = STEPS[step](text, options)
        else:
            after = compare(step, identity, text)
        if after is None or not after or after.isspace():
            yield step, text, None
            return
        yield step, text, after
        text = after


def _compare(
    options, texts, spans, removed, across, source, step, identity, text
) -> str | None:
    """What a step that compares documents makes of a text.

    Args:
        texts: hash → source of the texts before; that of this one is added.
        spans: hashes of the spans before; those of this text are added.
        across: source → duplicates of other sources; counted on.
        removed: (step, id) of what other steps removed, which are not run again.
    """
    if step == DROP_DUPLICATES:
        key = hash_text(text)
        is_new, first = key not in texts, texts.setdefault(key, source)
        across[source] += first != source
        return text if is_new else None
    if step == REPEATED_SPANS:
        found = find_spans(text, options)
        kept = remove_repeated_spans(text, found, spans)
        spans.update(found.keys)
        return kept
    return None if (step, identity) in removed else text


def _add_sample(kinds, step, identity, before, after):
    if after != before:
        kind = 'dropped' if after is None else 'changed'
        kinds[kind].add(lambda: (identity, before, after), step, identity)


def _mark_sample(identity, before, after) -> dict:
    if after is None:
        return dict(id=identity, before=excerpt(before), after=None)
    before, after = mark_difference(before, after)
    return dict(id=identity, before=before, after=after)


# ---- the fields of records


def count_values(records: Iterable[dict]) -> dict[str, Counter]:
    """Counts the values of each field by name: hosts of links, speakers of messages."""
    counts = {}
    for record in records:
        for field, value in record.items():
            for name, one in _values_of(field, value):
                counts.setdefault(name, Counter())[one] += 1
    return counts


def _values_of(field: str, value) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for one in value:
            if not isinstance(one, dict):
                yield from _values_of(field, one)
                continue
            name = next((n for n in SPEAKER_FIELDS if one.get(n)), None)
            if name:
                yield f'{field}.{name}', str(one[name])
    elif isinstance(value, str) and value:
        link = _LINK.match(value)
        yield field, link[1] if link else value[:VALUE_CHARACTERS]
