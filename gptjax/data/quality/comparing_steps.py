"""Runs the steps that compare a document with others, and lists what they removed.

    RUN/documents/removed.jsonl, RUN/dialogue/removed.jsonl
        {"id": "web/7", "source": "web", "step": "drop_near_duplicates",
         "match": "books/3", "similarity": 0.91, "text": "the first 200 characters"}

`decontaminate` gives the file and line of the example as `match`, and `ngram`.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.core.files import File, is_remote, list_files, open_raw
from gptjax.data.cleaning.cleaning_steps import (
    BAD_WORDS,
    DECONTAMINATE,
    DROP_DUPLICATES,
    DROP_NEAR_DUPLICATES,
    KEEP_QUALITY,
    REPEATED_SPANS,
    Options,
    StepCount,
    is_duplicate,
    select_transforms,
)
from gptjax.data.quality.decontamination import (
    ENDINGS,
    find_ngram,
    read_evaluation_sets,
)
from gptjax.data.quality.near_duplicates import NearDuplicateIndex, sign
from gptjax.data.quality.quality_classifier import read_classifier
from gptjax.data.quality.quality_rules import (
    find_spans,
    read_bad_words,
    remove_repeated_spans,
)
from gptjax.data.sources.open_source import describe_files, refuse_changed_files

REMOVED = 'removed.jsonl'
LISTED = {DROP_NEAR_DUPLICATES, DECONTAMINATE}  # steps that list what they removed
LISTED_CHARACTERS = 200
# What a step needs of a text: a pure function (text, options), for any process.
PREPARED = {
    DROP_NEAR_DUPLICATES: lambda text, options: sign(text),
    REPEATED_SPANS: find_spans,
}
# The field of `data` that names the files that a step reads, and their endings.
FILES_OF_STEP = {
    DECONTAMINATE: ('evaluation_sets', ENDINGS),
    BAD_WORDS: ('bad_words', ('.txt',)),
}
PACKAGE_OF_STEP = {DROP_NEAR_DUPLICATES: 'datasketch', KEEP_QUALITY: 'scikit-learn'}


def list_files_of(steps: set[str]) -> list[str]:
    """The files that these steps write."""
    return [REMOVED] if LISTED & steps else []


def describe_steps(data: ConfigDict, steps: set[str]) -> dict:
    """The manifest's entries for these steps: size and content of files, by path."""
    files = {}
    for step in sorted(steps & {*FILES_OF_STEP}):
        name, endings = FILES_OF_STEP[step]
        paths = [data[name]] if isinstance(data[name], str) else data[name]
        field = f'data.{name}'
        listed = {path: list_files(path, endings, field) for path in paths}
        files[name] = {
            path: dict(describe_files(found), sha256=_hash_contents(found, field))
            for path, found in listed.items()
        }
    return dict(files_of_steps=files) if files else {}


def refuse_changed_steps(manifest: dict, folder: Path) -> None:
    """Raises UserError if a file of `describe_steps` has changed."""
    for name, endings in FILES_OF_STEP.values():
        described = manifest.get('files_of_steps', {}).get(name, {})
        for path, source in described.items():
            field = f'data.{name}'
            refuse_changed_files(field, path, endings, dict(source=source), folder)
            if 'sha256' not in source or is_remote(path):  # of an old run
                continue
            try:
                now = _hash_contents(list_files(path, endings, field), field)
            except UserError:  # the run does not need them any more
                continue
            if now != source['sha256']:
                raise UserError(
                    f'{field}={path}: {folder} was made from other words in these '
                    f'files: use another --workdir, or delete {folder}'
                )


def _hash_contents(files: list[File], field: str) -> str:
    """SHA-256 of files that are small, as they are in memory when they are used."""
    hashes = []
    for file in files:
        with open_raw(file, field) as raw:
            hashes.append([file.name, hashlib.file_digest(raw, 'sha256').hexdigest()])
    return storage.fingerprint(hashes)


def refuse_unused_fields(data: ConfigDict, steps: set[str]) -> None:
    """Raises UserError if a file is given for a step that no source has."""
    for step, name in {
        DECONTAMINATE: 'evaluation_sets',
        BAD_WORDS: 'bad_words',
        KEEP_QUALITY: 'quality_classifier',
    }.items():
        if data[name] and step not in steps:
            raise UserError(
                f'data.{name}={data[name]}: no source has the step {step!r} that reads '
                'it: add the step to data.clean'
            )


def print_contaminated(
    section: str, steps_of: Mapping[str, Sequence[str]], data: ConfigDict
) -> None:
    """Prints which sources may have texts of data.evaluation_sets."""
    names = [name for name, steps in steps_of.items() if DECONTAMINATE not in steps]
    if data.evaluation_sets and names:
        fields = ', '.join(f'{section}.{name}' for name in names)
        print(
            f'{fields}: may have texts of data.evaluation_sets, which are not looked '
            f"for: add 'decontaminate' to {section}.{names[0]}.clean"
        )


def prepare_text(step: str, text: str, options: Options):
    """What `Comparisons.compare` needs of a text."""
    return PREPARED[step](text, options) if step in PREPARED else None


class Comparisons:
    """The documents of all sources so far, as the comparing steps need them.

    It reads the files that the steps need first; UserError if it cannot. `steps_of`
    has the steps of each source, in the order in which they run.
    """

    def __init__(
        self, data: ConfigDict, steps_of: Collection[Sequence[str]], folder: Path
    ):
        steps = {step for steps in steps_of for step in steps}
        self._texts, self._spans = set(), set()  # hashes
        self._near = NearDuplicateIndex(data.near_duplicate_similarity)
        self._ngrams, self._file = None, None
        if BAD_WORDS in steps:
            read_bad_words(data.bad_words)
        if DECONTAMINATE in steps:
            transforms = {
                (*select_transforms(steps[: steps.index(DECONTAMINATE)]),)
                for steps in steps_of
                if DECONTAMINATE in steps
            }
            self._ngrams = read_evaluation_sets(data, transforms)
        if KEEP_QUALITY in steps:
            read_classifier(data.quality_classifier)
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
            return None if is_duplicate(text, self._texts, count) else text
        if step == REPEATED_SPANS:
            kept = remove_repeated_spans(text, prepared, self._spans)
            self._spans.update(prepared.keys)
            return count.add_change(text, kept)
        name = f'{source}/{identity}'
        if step == DECONTAMINATE:
            found = find_ngram(text, self._ngrams)
            reason = found and dict(match=found[1], ngram=found[0])
        else:
            found = self._near.add(name, prepared)
            reason = found and dict(match=found[0], similarity=round(found[1], 4))
        if not found:
            return text
        start = text[:LISTED_CHARACTERS]
        record = dict(id=name, source=source, step=step, **reason, text=start)
        self._file.write(json.dumps(record, ensure_ascii=False) + '\n')
        return count.add_change(text, None)
