"""The documents of all sources: cleaned, without duplicates, split in two.

    RUN/documents/train.jsonl, validation.jsonl
        {"id": "chitchat/a07e…", "source": "chitchat", "text": "Hello\\n\\nHi!"}
    RUN/documents/manifest.json
        what was read, what each step changed and dropped, what is left, by source;
        hashes of the two files; licences, citations, versions

Text passes through a few megabytes at a time; only 16-byte hashes of all documents
are kept, for de-duplication.
"""

import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import metadata
from itertools import groupby, islice
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import artifact, console, storage
from gptjax.core.console import UserError
from gptjax.core.hashing import hash_fraction
from gptjax.data.cleaning.cleaning_steps import (
    DROP_DUPLICATES,
    Options,
    StepCount,
    check_steps,
    clean_text,
    is_duplicate,
    read_options,
)
from gptjax.data.sources.open_source import (
    describe_passed_over,
    open_source,
    refuse_changed_sources,
)
from gptjax.data.sources.records import SPLITS, Document, Source, group_by_size

CHUNK_CHARACTERS = 2**18  # cleaned at once
CHUNKS_BEFORE_PROCESSES = 64  # to start processes is not worth it for fewer
Write = Callable[[str, dict], None]  # (split, record): writes a line
PACKAGES = ('ftfy', 'selectolax', 'py3langid', 'sentencex', 'tensorflow-datasets')


def build_documents(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/documents from the sources of the config; returns its manifest."""
    data = config.data
    check_steps(data.clean)
    if not data.sources:
        raise UserError('data.sources is empty: name at least one source')
    return artifact.build(
        workdir / 'documents',
        # A weight decides about examples, not documents.
        cleaning_settings(data)
        | source_settings('data.sources', data.sources, 'weight'),
        lambda folder: _write_documents(data, folder, workdir / 'datasets'),
        needs=[f'{split}.jsonl' for split in SPLITS],
        check=partial(refuse_changed_sources, 'data.sources', data.sources),
    )


def describe_documents(manifest: dict) -> str:
    counts = [
        f'{split["documents"]:,} {name}' for name, split in manifest['splits'].items()
    ]
    return f'documents: {", ".join(counts)}{describe_passed_over(manifest)}'


DOCUMENTS = artifact.Artifact('documents', build_documents, describe_documents)


def _write_documents(data: ConfigDict, folder: Path, data_dir: Path) -> dict:
    sources = write_sources(
        data.sources,
        folder,
        lambda name, source: open_source(name, source, data_dir),
        partial(_write_source, data, set()),
    )
    splits = {
        split: dict(
            _sum(source['splits'][split] for source in sources.values()),
            sha256=storage.sha256_of_file(folder / f'{split}.jsonl'),
        )
        for split in SPLITS
    }
    _refuse_empty_split(splits, data.validation_fraction)
    return dict(
        fingerprint=storage.fingerprint([splits[name]['sha256'] for name in SPLITS]),
        licences={name: source['licence'] for name, source in sources.items()},
        splits=splits,
        sources=sources,
        packages=_versions(),
    )


def write_sources(
    sources: ConfigDict,
    folder: Path,
    open_source: Callable[[str, ConfigDict], Source],
    write_source: Callable[[str, Source, Write], dict],
) -> dict:
    """Writes `folder`/train.jsonl and validation.jsonl from all sources.

    `write_source(name, source, write)` returns counts for the manifest, and writes
    lines with `write(split, record)`. Returns what the manifest says by source.
    """
    described = {}
    with (
        open(folder / 'train.jsonl', 'w', encoding='utf-8') as train,
        open(folder / 'validation.jsonl', 'w', encoding='utf-8') as validation,
    ):
        files = dict(train=train, validation=validation)

        def write(split, record):
            files[split].write(json.dumps(record, ensure_ascii=False) + '\n')

        for name, config in sources.items():
            source = open_source(name, config)
            described[name] = dict(
                kind=config.kind,
                path=config.path,
                **source.description,
                **write_source(name, source, write),
            )
    return described


def assign_split(identity: str, validation_fraction: float) -> str:
    """'train' or 'validation', by the document's id alone.

    The SHA-256 of the id, read as a number from 0 to 1, is below the fraction or
    not. So no other document, source, limit or order moves it, and a larger fraction
    only moves documents from training to validation. The id has no source's name: a
    conversation that two sources hold falls on the same side in both.
    """
    return 'validation' if hash_fraction(identity) < validation_fraction else 'train'


def _write_source(
    data: ConfigDict, seen: set[bytes], name: str, source: Source, write: Write
) -> dict:
    """Reads, cleans and writes a source; returns what became of its documents."""
    counts = {step: StepCount() for step in data.clean}
    read, splits = Counter(empty=0), {split: Counter() for split in SPLITS}
    with console.progress_bar(f'cleaning {name}', source.total, source.unit) as advance:
        documents = _counted(source.read(advance), read)
        # The one step that sees all documents is taken by itself.
        for compares, steps in groupby(data.clean, key=DROP_DUPLICATES.__eq__):
            if compares:
                documents = (
                    (identity, text)
                    for identity, text in documents
                    if not is_duplicate(text, seen, counts[DROP_DUPLICATES])
                )
            else:
                documents = _cleaned(documents, list(steps), data, counts)
        for identity, text in documents:
            split = assign_split(identity, data.validation_fraction)
            write(split, dict(id=f'{name}/{identity}', source=name, text=text))
            splits[split].update(_size(text))
    kept = _sum(splits.values())
    if not kept['documents']:
        _refuse_nothing(name, read, counts)
    return dict(
        read=dict(read),
        steps={step: asdict(count) for step, count in counts.items()},
        kept=kept,
        splits={split: _sum([count]) for split, count in splits.items()},
    )


def _cleaned(
    documents: Iterable[Document],
    steps: list[str],
    data: ConfigDict,
    counts: dict[str, StepCount],
) -> Iterator[Document]:
    """The cleaned documents, in order however many processes there are."""
    workers = data.workers or os.cpu_count()
    clean = partial(_clean_chunk, steps=steps, options=read_options(data))
    chunks = group_by_size(documents, lambda pair: len(pair[1]), CHUNK_CHARACTERS)
    for chunk, chunk_counts in _map_in_processes(clean, chunks, workers):
        for step, count in chunk_counts.items():
            counts[step].add(count)
        yield from chunk


def _clean_chunk(
    documents: list[Document], steps: list[str], options: Options
) -> tuple[list[Document], dict[str, StepCount]]:
    counts = {step: StepCount() for step in steps}
    cleaned = ((i, clean_text(text, steps, options, counts)) for i, text in documents)
    return [(i, text) for i, text in cleaned if text is not None], counts


def _map_in_processes(function, chunks: Iterator, workers: int) -> Iterator:
    """`map` in order; after CHUNKS_BEFORE_PROCESSES in processes, a few ahead.

    A process takes a second to start, in which one core cleans six megabytes.
    """
    yield from map(function, islice(chunks, CHUNKS_BEFORE_PROCESSES))
    if workers == 1:
        yield from map(function, chunks)
        return
    context = multiprocessing.get_context('spawn')  # forks and threads do not mix
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        ahead = deque()
        for chunk in chunks:
            ahead.append(pool.submit(function, chunk))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _counted(documents: Iterable[Document], count: Counter) -> Iterator[Document]:
    """Counts what is read, and leaves out what is empty."""
    for identity, text in documents:
        count.update(_size(text))
        if text and not text.isspace():
            yield identity, text
        else:
            count['empty'] += 1


def _size(text: str) -> dict:
    return dict(documents=1, characters=len(text), bytes=len(text.encode()))


def _sum(sizes: Iterable[dict]) -> dict:
    total = Counter(documents=0, characters=0, bytes=0)
    for size in sizes:
        total.update({name: size[name] for name in total if name in size})
    return dict(total)


def cleaning_settings(data: ConfigDict) -> dict:
    """The fields that decide what is left of any source, and its split, by names."""
    names = 'clean', *Options._fields, 'validation_fraction'
    return {f'data.{name}': data[name] for name in names}


def source_settings(section: str, sources: ConfigDict, without: str = '') -> dict:
    """The fields of all sources but the field `without`, by their names."""
    return {
        f'{section}.{source}.{name}': value
        for source, fields in sources.items()
        for name, value in fields.items()
        if name != without
    }


def _refuse_nothing(name: str, read: Counter, counts: dict[str, StepCount]) -> None:
    if read['empty'] == read['documents']:
        raise UserError(
            f'data.sources.{name}: all {read["empty"]} documents are empty: name '
            'another path or text_field'
        )
    most = max(counts, key=lambda step: counts[step].documents_dropped)
    raise UserError(
        f'data.clean: no document of data.sources.{name} is left of '
        f'{read["documents"]}, and {most!r} dropped most of them: leave it out, or '
        'give it more room'
    )


def _refuse_empty_split(splits: dict, validation_fraction: float) -> None:
    for split in SPLITS:
        if not splits[split]['documents']:
            total = _sum(splits.values())['documents']
            change = 'smaller' if split == 'train' else 'larger'
            raise UserError(
                f'data.validation_fraction={validation_fraction} puts none of the '
                f'{total} documents into {split}: use a {change} fraction, or more '
                'documents (a single text file is cut into several)'
            )


def _versions() -> dict:
    """Versions of the packages that decide what the text becomes."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None  # not needed by this config's steps
    return versions
