"""The documents of all sources: cleaned, without duplicates, in two splits.

    RUN/documents/train.jsonl, validation.jsonl
        {"id": "chitchat/a07e…", "source": "chitchat", "text": "Hello\\n\\nHi!"}
    RUN/documents/removed.jsonl: see quality/comparing_steps.py
    RUN/documents/manifest.json
        by source: what was read, what each step changed and dropped, what was kept;
        hashes of the two files; licences, citations, versions

A few megabytes of text are in memory at a time, and what the steps that compare
documents need of each: for `drop_duplicates` a hash of 16 bytes, and for
`c4_repeated_spans` one for each sentence, which takes about 100 bytes.
"""

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core import artifact, console, run_dir, storage
from gptjax.core.console import UserError
from gptjax.data.cleaning.cleaning_steps import (
    COMPARING,
    FIELDS_OF_STEP,
    KEEP_QUALITY,
    Options,
    StepCount,
    check_steps,
    choose_steps,
    clean_text,
    expand_groups,
    name_reason,
    read_options,
)
from gptjax.data.quality.comparing_steps import (
    PACKAGE_OF_STEP,
    PREPARED,
    Comparisons,
    describe_steps,
    list_files_of,
    prepare_text,
    print_contaminated,
    refuse_changed_steps,
    refuse_unused_fields,
)
from gptjax.data.quality.quality_classifier import FINGERPRINT, find_fingerprint
from gptjax.data.sources.file_source import cut_text
from gptjax.data.sources.open_source import (
    describe_passed_over,
    open_source,
    refuse_changed_sources,
)
from gptjax.data.sources.records import (
    OTHER_LICENCE,
    SPLITS,
    Document,
    Licences,
    Source,
    group_by_size,
)
from gptjax.data.splits import Part, SplitWriter, describe_shared

CHUNK_CHARACTERS = 2**18  # cleaned by one call
CHUNKS_BEFORE_PROCESSES = 64  # for fewer chunks, starting processes costs more
NUM_PARTS = 20  # of a document that is the only one
Write = Callable[[Part], None]
PACKAGES = ('ftfy', 'selectolax', 'py3langid', 'sentencex', 'tensorflow-datasets')


def build_documents(config: ConfigDict, workdir: Path) -> dict:
    """Makes RUN/documents from `data.sources`; returns the manifest."""
    data = config.data
    check_steps(data.clean)
    if not data.sources:
        raise UserError(
            'data.sources is empty: name at least one source, such as '
            "dict(own=common.source('text', 'notes.txt'))"
        )
    folder = workdir / 'documents'
    return artifact.build(
        folder,
        # A weight changes how often a document is read, not the documents.
        cleaning_settings(data)
        | source_settings('data.sources', data.sources, data, folder, 'weight'),
        lambda folder: _write_documents(data, folder, workdir / 'datasets'),
        needs=[
            *(f'{split}.jsonl' for split in SPLITS),
            *list_files_of(used_steps('data.sources', data.sources, data)),
        ],
        check=partial(refuse_changed_inputs, 'data.sources', data.sources),
    )


def refuse_changed_inputs(
    section: str, sources: ConfigDict, manifest: dict, folder: Path
) -> None:
    """Raises UserError if files have changed that `folder` was made from."""
    refuse_changed_sources(section, sources, manifest, folder)
    refuse_changed_steps(manifest, folder)


def describe_documents(manifest: dict) -> str:
    counts = [
        f'{split["documents"]:,} {name}' for name, split in manifest['splits'].items()
    ]
    return f'documents: {", ".join(counts)}{describe_passed_over(manifest)}'


def describe_left_out(manifest: dict) -> str:
    """What was left out of each source and why, a line for each source."""

    def count_left_out(source):
        dropped = {
            name_reason(step, manifest['settings']): count['documents_dropped']
            for step, count in source['steps'].items()
        }
        other = source['read'].get(OTHER_LICENCE, 0)
        reason = other and name_reason(OTHER_LICENCE, manifest['settings'])
        return {'empty text': source['read']['empty'], reason: other} | dropped

    return describe_sources(manifest, 'documents', count_left_out)


def describe_sources(
    manifest: dict, unit: str, count_left_out: Callable[[dict], dict[str, int]]
) -> str:
    """Lines about each source of an artifact: what was left out, ids that are none.

    Args:
        unit: 'documents' or 'conversations', what the sources consist of.
        count_left_out: a source of the manifest -> counts by reason.
    """
    sources = manifest['sources'].items()
    return console.join_lines(
        *(
            console.describe_left_out(
                count_left_out(source), source['read'][unit], f'{unit} of {name}'
            )
            for name, source in sources
        ),
        *(source.get('ids', '') for _, source in sources),
        describe_shared(manifest['splits'], unit),
    )


DOCUMENTS = artifact.Artifact(
    'documents', build_documents, describe_documents, describe_left_out
)


def _write_documents(data: ConfigDict, folder: Path, data_dir: Path) -> dict:
    steps_of = list_steps('data.sources', data.sources, data)
    steps = used_steps('data.sources', data.sources, data)
    refuse_unused_fields(data, steps)
    print_contaminated('data.sources', steps_of, data)
    licences = Licences(data.licences)
    licences.check_sources('data.sources', data.sources)
    with Comparisons(data, steps_of.values(), folder) as comparisons:
        sources = write_sources(
            data.sources,
            SplitWriter(folder, data.validation_fraction, _cut_document),
            lambda name, source: open_source(name, source, data_dir, licences),
            partial(_write_source, data, comparisons, licences),
        )
    splits = {
        split: dict(
            _sum(source['splits'][split] for source in sources.values()),
            sha256=storage.sha256_of_file(folder / f'{split}.jsonl'),
        )
        for split in SPLITS
    }
    return dict(
        fingerprint=storage.fingerprint([splits[name]['sha256'] for name in SPLITS]),
        licences={name: source['licence'] for name, source in sources.items()},
        splits=splits,
        sources=sources,
        **describe_steps(data, steps),
        packages=run_dir.package_versions(
            (*PACKAGES, *(PACKAGE_OF_STEP[step] for step in steps & {*PACKAGE_OF_STEP}))
        ),
    )


def write_sources(
    sources: ConfigDict,
    writer: SplitWriter,
    open_source: Callable[[str, ConfigDict], Source],
    write_source: Callable[[str, Source, Write], dict],
) -> dict:
    """Writes the records of all sources in two splits.

    `write_source(name, source, write)` writes records with `write(part)`, and returns
    counts. Returns the manifest's entry of each source by name.
    """
    described = {}
    with writer:
        for name, config in sources.items():
            source = open_source(name, config)
            described[name] = dict(
                kind=config.kind,
                path=config.path,
                **source.description,
                **write_source(name, source, partial(writer.write, name)),
            )
        sizes = writer.finish()
    for name, source in described.items():
        source['splits'] = {split: dict(size) for split, size in sizes[name].items()}
    return described


def _write_source(
    data: ConfigDict,
    comparisons: Comparisons,
    licences: Licences,
    name: str,
    source: Source,
    write: Write,
) -> dict:
    """Reads, cleans and writes a source; returns counts of its documents."""
    field = f'data.sources.{name}'
    clean = choose_steps(field, data.sources[name], data)
    counts = {step: StepCount() for step in clean}
    read, kept = Counter(empty=0), Counter()
    with console.progress_bar(f'cleaning {name}', source.total, source.unit) as advance:
        documents = _drop_empty(source.read(advance), read)
        # A step that compares sees all documents; those around it see chunks.
        for compares, steps in groupby(clean, key=lambda step: step in COMPARING):
            if not compares:
                documents = _clean(documents, list(steps), data, counts)
                continue
            for step in steps:
                compare = partial(comparisons.compare, step, name, count=counts[step])
                documents = _compare(documents, step, data, compare)
        for identity, text in documents:
            write(_make_part(name, identity, text))
            kept.update(_size(text))
    left_out = licences.count_left_out(field)
    read.update(left_out, documents=left_out.get(OTHER_LICENCE, 0))
    if not kept:
        if read[OTHER_LICENCE] + read['empty'] == read['documents'] > read['empty']:
            raise UserError(
                f'data.licences={[*data.licences]}: allows none of the '
                f'{read["documents"]} documents of {field}, which have other licences: '
                'add theirs, or leave out the source'
            )
        if read['empty'] == read['documents']:
            raise UserError(
                f'data.sources.{name}: all {read["empty"]} documents are empty: give '
                'another path or text_field'
            )
        most = max(counts, key=lambda step: counts[step].documents_dropped)
        raise UserError(
            f'data.clean: none of the {read["documents"]} documents of '
            f'data.sources.{name} is left, and {most!r} dropped most of them: remove '
            'it, or change its limit'
        )
    return dict(
        read=dict(read),
        steps={step: asdict(count) for step, count in counts.items()},
        kept=dict(kept),
        **licences.describe(field, data.sources[name]),
    )


def _make_part(source: str, identity: str, text: str) -> Part:
    record = dict(id=f'{source}/{identity}', source=source, text=text)
    return Part(identity, [record], _size(text))


def _cut_document(part: Part) -> list[Part]:
    """Cuts the only document into about NUM_PARTS, so that one can be held out."""
    (record,), name = part.records, part.records[0]['source']
    lines = record['text'].splitlines(keepends=True)
    texts = cut_text(lines, max(1, len(record['text']) // NUM_PARTS))
    return [_make_part(name, f'{part.key}.{n}', text) for n, text in enumerate(texts)]


def _clean(
    documents: Iterable[Document],
    steps: list[str],
    data: ConfigDict,
    counts: dict[str, StepCount],
) -> Iterator[Document]:
    """Yields the cleaned documents, in order with any number of processes."""
    clean = partial(_clean_chunk, steps=steps, options=read_options(data))
    for chunk, chunk_counts in _map_chunks(clean, documents, _count_workers(data)):
        for step, count in chunk_counts.items():
            counts[step].add(count)
        yield from chunk


def _clean_chunk(
    documents: list[Document], steps: list[str], options: Options
) -> tuple[list[Document], dict[str, StepCount]]:
    counts = {step: StepCount() for step in steps}
    cleaned = ((i, clean_text(text, steps, options, counts)) for i, text in documents)
    return [(i, text) for i, text in cleaned if text is not None], counts


def _compare(
    documents: Iterable[Document], step: str, data: ConfigDict, compare: Callable
) -> Iterator[Document]:
    """Yields what a comparing step keeps; processes prepare the texts for it."""
    prepare = partial(_prepare_chunk, step=step, options=read_options(data))
    workers = _count_workers(data) if step in PREPARED else 1
    for chunk in _map_chunks(prepare, documents, workers):
        for identity, text, prepared in chunk:
            kept = compare(identity, text, prepared)
            if kept is not None:
                yield identity, kept


def _prepare_chunk(documents: list[Document], step: str, options: Options) -> list:
    return [(i, text, prepare_text(step, text, options)) for i, text in documents]


def _map_chunks(function, documents: Iterable[Document], workers: int) -> Iterator:
    """Maps chunks in order; uses processes after the first CHUNKS_BEFORE_PROCESSES.

    A process takes a second to start, in which one core cleans six megabytes.
    """
    chunks = group_by_size(documents, lambda pair: len(pair[1]), CHUNK_CHARACTERS)
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


def _count_workers(data: ConfigDict) -> int:
    return data.workers or os.cpu_count()


def _drop_empty(documents: Iterable[Document], count: Counter) -> Iterator[Document]:
    """Counts documents, and leaves out the empty ones."""
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
    """The config fields that decide which text is kept, and in which split."""
    of_steps = {field for fields in FIELDS_OF_STEP.values() for field in fields}
    names = 'clean', *Options._fields, 'validation_fraction'
    settings = {f'data.{name}': data[name] for name in names if name not in of_steps}
    settings['data.clean'] = expand_groups(data.clean)  # a group may change
    return settings | ({'data.licences': data.licences} if data.licences else {})


def list_steps(
    section: str, sources: ConfigDict, data: ConfigDict
) -> dict[str, list[str]]:
    """The cleaning steps of each source of a config section, in order."""
    return {
        name: choose_steps(f'{section}.{name}', source, data)
        for name, source in sources.items()
    }


def used_steps(section: str, sources: ConfigDict, data: ConfigDict) -> set[str]:
    """The cleaning steps of all sources of a config section."""
    return {s for steps in list_steps(section, sources, data).values() for s in steps}


LATER = ('licence_field', 'columns')  # fields that manifests of older runs lack


def source_settings(
    section: str,
    sources: ConfigDict,
    data: ConfigDict,
    folder: Path,
    without: str = '',
) -> dict:
    """The config fields of all sources except the field `without`.

    `clean` is among them if it gives other steps than data.clean, and the fields of
    FIELDS_OF_STEP if a source has the step. `folder` is the artifact made from them.
    """
    settings = {
        f'{section}.{source}.{name}': value
        for source, fields in sources.items()
        for name, value in fields.items()
        if name not in (without, 'clean') and (value or name not in LATER)
    }
    for source, fields in sources.items():
        steps = choose_steps(f'{section}.{source}', fields, data)
        if steps != expand_groups(data.clean):
            settings[f'{section}.{source}.clean'] = steps
    for step in used_steps(section, sources, data):
        for field in FIELDS_OF_STEP.get(step, ()):
            settings[f'data.{field}'] = data[field]
        if step == KEEP_QUALITY:  # where the classifier is changes nothing
            settings[FINGERPRINT] = find_fingerprint(data.quality_classifier, folder)
    return settings
