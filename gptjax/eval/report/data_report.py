"""`data --report`: RUN/data.html, one page about the documents of a run.

`data_survey.py` reads the sources again for lengths, languages and samples; the counts
are those of RUN/documents/manifest.json. Equal sources give an equal page.
"""

import statistics
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gptjax.core import console, storage
from gptjax.core.artifact import require
from gptjax.core.console import UserError
from gptjax.data.cleaning.cleaning_steps import (
    COMPARING,
    DROP_DUPLICATES,
    DROP_NEAR_DUPLICATES,
    name_reason,
)
from gptjax.data.sources.records import OTHER_LICENCE
from gptjax.eval.report import charts, data_survey
from gptjax.eval.report.tables import format_short
from gptjax.eval.report.templates import render
from gptjax.eval.report.text_difference import excerpt
from gptjax.tokenizer.load_tokenizer import (
    AnyTokenizer,
    find_tokenizer,
    load_tokenizer,
)

TOP = 8  # languages, sites or speakers of a source
REMOVED_SAMPLES = 3  # of each step that compares documents


def write_data_report(config: ConfigDict, workdir: Path) -> Path:
    """Writes RUN/data.html; returns its path. The documents have to be there."""
    manifest = require(workdir / 'documents', 'data')
    with console.progress_bar('reading the sources again', 0):
        surveys, across = data_survey.survey_sources(config, workdir)
    tokenizer = _read_tokenizer(workdir)
    sources = {
        name: _describe_source(name, manifest, survey, tokenizer)
        for name, survey in surveys.items()
    }
    whole = all(survey['is_whole'] for survey in surveys.values())
    page = render(
        'data_report.html.j2',
        name=workdir.name,
        facts=_facts(manifest),
        sources=sources,
        totals=_total_row(manifest),
        languages=_languages_of_all(sources),
        charts=_length_charts(surveys),
        duplicates=_duplicate_rows(manifest, workdir, across if whole else None),
        other_licence=sum(
            source['read'].get(OTHER_LICENCE, 0)
            for source in manifest['sources'].values()
        ),
        removed=_removed_samples(workdir),
        tokenizer=tokenizer,
        limits=data_survey,
        whole=whole,
    )
    path = workdir / 'data.html'
    storage.write_text(path, page)
    return path


def _facts(manifest):
    """(label, value) of each figure at the top of the page."""
    splits = manifest['splits']
    total = Counter()
    for split in splits.values():
        total.update({name: split[name] for name in ('documents', 'characters')})
    mean = total['characters'] / max(1, total['documents'])
    return [
        ('documents kept', f'{total["documents"]:,}'),
        ('characters kept', format_short(total['characters'])),
        ('characters a document', format_short(round(mean))),
        ('held out', f'{splits["validation"]["documents"]:,}'),
        ('sources', f'{len(manifest["sources"]):,}'),
    ]


def _total_row(manifest) -> dict:
    """{'read', 'kept'} → documents and characters of all sources."""
    counts = dict(read=_count_read, kept=lambda source: source['kept'])
    return {
        kind: {
            unit: sum(count(source)[unit] for source in manifest['sources'].values())
            for unit in ('documents', 'characters')
        }
        for kind, count in counts.items()
    }


def _count_read(source: dict) -> dict:
    """What was read of a source; documents of other licences have no characters."""
    read = source['read']
    return dict(read, documents=read['documents'] - read.get(OTHER_LICENCE, 0))


def _length_charts(surveys) -> list[str]:
    unit = 'characters, by powers of two'
    figures = [
        charts.histogram(name, unit, survey['read'], survey['kept'])
        for name, survey in surveys.items()
    ]
    if len(surveys) == 1:
        return figures
    read, kept = (
        [length for survey in surveys.values() for length in survey[kind]]
        for kind in ('read', 'kept')
    )
    return [charts.histogram('All sources', unit, read, kept), *figures]


def _describe_source(name, manifest, survey, tokenizer) -> dict:
    source = manifest['sources'][name]
    steps = []
    passed_over = {n: source['read'].get(n, 0) for n in ('empty', OTHER_LICENCE)}
    left = source['read']['documents'] - sum(passed_over.values())
    for step, count in source['steps'].items():
        left -= count['documents_dropped']
        samples = survey['samples'].get(step, dict(changed=[], dropped=[]))
        reason = name_reason(step, manifest['settings'])
        steps.append(dict(count, name=step, left=left, reason=reason, **samples))
    return dict(
        source,
        allowed=_count_read(source),
        passed_over={name: count for name, count in passed_over.items() if count},
        surveyed=len(survey['read']),
        is_whole=survey['is_whole'],
        median=statistics.median_high(survey['kept'] or [0]),
        languages=_count_languages(survey['documents']),
        fields=_top_values(survey['fields']),
        tokens=_count_tokens(survey['documents'], tokenizer),
        steps=steps,
    )


def _count_languages(texts: list[str]) -> list[tuple[str, float]]:
    """(language, share of the texts); what py3langid says of their beginnings."""
    import py3langid

    counts = Counter(py3langid.classify(text[:2000])[0] for text in texts)
    top = counts.most_common(TOP)
    rest = counts.total() - sum(count for _, count in top)
    shares = [*top, ('others', rest)] if rest else top
    return [(language, count / counts.total()) for language, count in shares]


def _languages_of_all(sources: dict[str, dict]) -> list[tuple[str, float]]:
    """The shares of languages, each source in proportion to its kept documents."""
    counts = Counter()
    for source in sources.values():
        for language, share in source['languages']:
            counts[language] += share * source['kept']['documents']
    return [(language, n / counts.total()) for language, n in counts.most_common(TOP)]


def _top_values(fields: dict[str, Counter]) -> list[dict]:
    """The commonest values of each field that repeats one."""
    return [
        dict(
            field=field,
            different=len(counts),
            total=counts.total(),
            top=sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP],
        )
        for field, counts in fields.items()
        if len(counts) < counts.total()
    ]


def _read_tokenizer(workdir: Path) -> AnyTokenizer | None:
    folder = workdir / 'tokenizer'
    try:
        return load_tokenizer(folder) if find_tokenizer(folder) else None
    except UserError as error:
        print(f'the page is without tokens: {error}')
        return None


def _count_tokens(texts: list[str], tokenizer) -> dict:
    """Words and, with a tokenizer, tokens of the sampled texts."""
    words = Counter(word for text in texts for word in text.casefold().split())
    counts = dict(documents=len(texts), words=words.total(), different=len(words))
    if tokenizer is None:
        return counts
    tokens = tokenizer.encode_arrays(texts)
    num_tokens = sum(map(len, tokens))
    num_bytes = sum(len(text.encode()) for text in texts)
    used = len(np.unique(np.concatenate(tokens))) if num_tokens else 0
    return dict(
        counts,
        tokens=num_tokens,
        used=used,
        bytes_per_token=num_bytes / num_tokens if num_tokens else None,
    )


def _duplicate_rows(manifest, workdir: Path, across: Counter | None) -> list[tuple]:
    """(label, {source → dropped}) of the steps that compare documents.

    If there are several sources, further rows tell whether the document that is alike
    is in the same source. `across`: source → duplicates of other sources, if known.
    """
    steps = {}
    for name, source in manifest['sources'].items():
        for step, count in source['steps'].items():
            if step in COMPARING:
                steps.setdefault(step, {})[name] = count['documents_dropped']
    if len(manifest['sources']) == 1:
        return list(steps.items())
    others = dict() if across is None else {DROP_DUPLICATES: across}
    if DROP_NEAR_DUPLICATES in steps:
        others[DROP_NEAR_DUPLICATES] = Counter(
            line['source']
            for line in data_survey.read_removed(workdir)
            if line['step'] == DROP_NEAR_DUPLICATES
            and not line['match'].startswith(f'{line["source"]}/')
        )
    rows = []
    for step, dropped in steps.items():
        rows.append((step, dropped))
        if step in others:
            other = {name: others[step][name] for name in dropped}
            same = {name: count - other[name] for name, count in dropped.items()}
            rows += [('… of the same source', same), ('… of another source', other)]
    return rows


def _removed_samples(workdir: Path) -> list[dict]:
    """Lines of RUN/documents/removed.jsonl, some of each step, chosen by a hash."""
    samples = {}
    for line in data_survey.read_removed(workdir):
        sample = samples.setdefault(
            line['step'], data_survey.HashSample(REMOVED_SAMPLES)
        )
        make = lambda line=line: dict(line, text=excerpt(line['text']))
        sample.add(make, line['step'], line['id'])
    return [line for sample in samples.values() for line in sample.values()]
