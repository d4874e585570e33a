"""What an evaluation found: figures with intervals and baselines, as JSON and a table.

A task's result is a dict:

    kind            'perplexity', 'generation', 'choice', 'dialogue', 'verifiable' or
                    'means': which figures
    figures         {name: {value, interval, baselines: {label: {value, interval}}}}
    bootstrap       resamples, level, seed, of the intervals
    settings        what else decides the figures
    prompts_sha256  of all prompts in order
    columns         names of the statistics of an item
    items           [{id, prompt_sha256, item_sha256, statistics, reply …}]

The statistics are what the figures are functions of, so that two results can be
compared item by item without the models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptjax.core import storage
from gptjax.eval import bootstrap

LABELS = {
    'bits_per_byte': 'bits per byte',
    'loss': 'loss, nats a token',
    'token_perplexity': 'perplexity of a token',
    'word_perplexity': 'perplexity of a word',
    'bleu': 'BLEU',
    'chrf': 'chrF',
    'rouge1': 'ROUGE-1',
    'rouge2': 'ROUGE-2',
    'rougeL': 'ROUGE-L',
    'rougeLsum': 'ROUGE-Lsum',
    'token_f1': 'token F1',
    'exact_match': 'exact match',
    'repetition': 'repeated 4-grams',
    'distinct_1': 'distinct-1',
    'distinct_2': 'distinct-2',
    'words': 'words in a reply',
    'accuracy': 'accuracy',
    'accuracy_tokens': 'accuracy, per token',
    'accuracy_bytes': 'accuracy, per byte',
    'reply_bits': 'bits per byte of replies',
    'reply_bits_open': 'the same, ends left out',
    'stops': 'stops by itself',
    'accuracy_drawn': 'accuracy, temperature 1',
    'pass_at_8': 'one of 8 right',
    'stops_drawn': 'stops, temperature 1',
    'reply_tokens': 'tokens in a reply',
}


class Bootstrap(NamedTuple):
    """How intervals are made: so many resamples, the share they hold, the seed."""

    resamples: int
    level: float
    seed: int


def figures_of(
    columns: bootstrap.Columns,
    figures: Mapping[str, bootstrap.Figure],
    how: Bootstrap,
) -> dict[str, dict]:
    """{name: {value, interval}} of statistics."""
    sums = bootstrap.total(columns)
    ranges = bootstrap.intervals(columns, figures, *how)
    return {
        name: dict(value=finite(of(sums)), interval=_finites(ranges[name]))
        for name, of in figures.items()
    }


def figure_of(value: float, samples: np.ndarray, level: float) -> dict:
    """{value, interval} of a figure that is no function of sums."""
    return dict(
        value=finite(value), interval=_finites(bootstrap.interval(samples, level))
    )


def add_baseline(figures: dict, label: str, baseline: Mapping[str, dict]) -> None:
    """Puts {name: {value, interval}} beside the figures of the same names."""
    for name, figure in baseline.items():
        figures[name].setdefault('baselines', {})[label] = figure


def result(
    kind: str,
    about: str,
    figures: dict,
    columns: bootstrap.Columns,
    items: Sequence[dict],
    how: Bootstrap,
    settings: Mapping,
    **more,
) -> dict:
    """A task's result, as above; `items` without their statistics."""
    table = np.stack([np.asarray(c, np.float64) for c in columns.values()], axis=1)
    return dict(
        kind=kind,
        about=about,
        figures=figures,
        bootstrap=how._asdict(),
        settings=dict(settings),
        prompts_sha256=storage.fingerprint([item['prompt_sha256'] for item in items]),
        **more,
        columns=list(columns),
        items=[
            dict(item, statistics=[_whole(cell) for cell in row])
            for item, row in zip(items, table.tolist(), strict=True)
        ],
    )


def columns_of(task: Mapping) -> dict[str, np.ndarray]:
    """The statistics of a task's result, (N,) float64 by name."""
    table = np.array([item['statistics'] for item in task['items']], np.float64)
    return dict(zip(task['columns'], table.T, strict=True))


# ---- JSON


def write(path: Path, evaluation: Mapping) -> None:
    """Writes JSON with a line for each list of numbers or short texts."""
    storage.write_text(path, to_text(evaluation) + '\n')


def to_text(value, indent: int = 0) -> str:
    """JSON, indented, but lists of plain values stay in a line."""
    inner, outer = '\n' + ' ' * (indent + 2), '\n' + ' ' * indent
    if isinstance(value, Mapping) and value:
        parts = (
            f'{json.dumps(str(name), ensure_ascii=False)}: {to_text(its, indent + 2)}'
            for name, its in value.items()
        )
        return '{' + inner + f',{inner}'.join(parts) + outer + '}'
    if isinstance(value, list | tuple) and any(
        isinstance(part, Mapping | list | tuple) for part in value
    ):
        parts = (to_text(part, indent + 2) for part in value)
        return '[' + inner + f',{inner}'.join(parts) + outer + ']'
    return json.dumps(value, ensure_ascii=False)


# ---- the table


def table(heading: str, tasks: Mapping[str, dict]) -> str:
    """The figures of all tasks as text, a line each, baselines beside them."""
    rows = []
    for name, task in tasks.items():
        for figure, found in task['figures'].items():
            beside = [
                f'{short(other["value"])}{between(other.get("interval"))} {label}'
                for label, other in found.get('baselines', {}).items()
            ]
            rows.append(
                (
                    name,
                    label_of(figure),
                    short(found['value']),
                    between(found['interval']).strip(),
                    ' · '.join(beside),
                )
            )
            name = ''
    titles = ('task', 'figure', 'value', 'interval', 'beside it')
    return heading + '\n' + columns_text([titles, *rows], right=(2,))


def columns_text(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells, aligned; the first row is the heading."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def label_of(figure: str) -> str:
    """'bits per byte, chitchat' of 'bits_per_byte/chitchat'."""
    name, _, part = figure.partition('/')
    return LABELS.get(name, name) + (f', {part}' if part else '')


def short(value: float | None) -> str:
    """Three digits behind the point of what is small; '–' of nothing."""
    if value is None:
        return '–'
    return f'{value:.3f}' if abs(value) < 10 else f'{value:,.1f}'


def between(interval) -> str:
    """' (1.23 … 1.31)'."""
    if not interval:
        return ''
    return f' ({short(interval[0])} … {short(interval[1])})'


def finite(value) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _finites(values: Sequence[float]) -> list[float | None]:
    return [finite(value) for value in values]


def _whole(cell: float) -> float | int | None:
    """Whole numbers without '.0': they are most of the file."""
    if not math.isfinite(cell):
        return None
    return int(cell) if cell == int(cell) else cell
