"""The result of a task: figures with intervals and baselines, and its examples.

It is a dict in RUN/eval.json:

    kind            'perplexity', 'generation', 'choice', 'dialogue', 'verifiable' or
                    'means'; decides which figures there are
    figures         {name: {value, interval, baselines: {label: {value, interval}}}}
    bootstrap       {resamples, level, seed} of the intervals
    settings        all other settings that change the figures
    prompts_sha256  hash of all prompts in order
    columns         names of the statistics of an example
    items           [{id, prompt_sha256, item_sha256, statistics, reply …}]

The figures are functions of the statistics, so that two results can be compared
example by example without the models.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gptjax.core import storage
from gptjax.eval.bootstrap import BootstrapSettings, Columns, make_table


def make_result(
    kind: str,
    about: str,
    figures: dict,
    columns: Columns,
    examples: Sequence[dict],
    bootstrap_settings: BootstrapSettings,
    settings: Mapping,
    **more,
) -> dict:
    """Builds a task's result; `items` are the examples and their statistics."""
    table = make_table(columns)
    return dict(
        kind=kind,
        about=about,
        figures=figures,
        bootstrap=bootstrap_settings._asdict(),
        settings=dict(settings),
        prompts_sha256=storage.fingerprint([e['prompt_sha256'] for e in examples]),
        **more,
        columns=list(columns),
        items=[
            dict(example, statistics=[_shortest_number(cell) for cell in row])
            for example, row in zip(examples, table.tolist(), strict=True)
        ],
    )


def read_columns(result: Mapping) -> dict[str, np.ndarray]:
    """The statistics of a task's result, (N,) float64 by name."""
    table = np.array([item['statistics'] for item in result['items']], np.float64)
    return dict(zip(result['columns'], table.T, strict=True))


def add_baseline(figures: dict, label: str, baseline: Mapping[str, dict]) -> None:
    """Adds a baseline, {name: {value, interval}}, to the figures of these names."""
    for name, figure in baseline.items():
        kept = {key: figure[key] for key in ('value', 'interval') if key in figure}
        figures[name].setdefault('baselines', {})[label] = kept


def write_results(path: Path, evaluation: Mapping) -> None:
    """Writes JSON; a list of numbers or texts is one line."""
    storage.write_text(path, to_json(evaluation) + '\n')


def to_json(value, indent: int = 0) -> str:
    """Indented JSON in which lists of numbers and texts stay on one line."""
    inner, outer = '\n' + ' ' * (indent + 2), '\n' + ' ' * indent
    if isinstance(value, Mapping) and value:
        lines = (
            f'{json.dumps(str(name), ensure_ascii=False)}: {to_json(cell, indent + 2)}'
            for name, cell in value.items()
        )
        return '{' + inner + f',{inner}'.join(lines) + outer + '}'
    if isinstance(value, list | tuple) and any(
        isinstance(cell, Mapping | list | tuple) for cell in value
    ):
        lines = (to_json(cell, indent + 2) for cell in value)
        return '[' + inner + f',{inner}'.join(lines) + outer + ']'
    return json.dumps(value, ensure_ascii=False)


def _shortest_number(cell: float) -> float | int | None:
    """2.0 → 2, which makes the file smaller; infinity or NaN → None."""
    if not math.isfinite(cell):
        return None
    return int(cell) if cell == int(cell) else cell
