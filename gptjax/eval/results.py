"""The result of a task: figures with intervals and baselines, and what they rest on.

It is a dict, and a part of RUN/eval.json:

    kind            'perplexity', 'generation', 'choice', 'dialogue', 'verifiable' or
                    'means': which figures
    figures         {name: {value, interval, baselines: {label: {value, interval}}}}
    bootstrap       resamples, level, seed, of the intervals
    settings        what else decides the figures
    prompts_sha256  of all prompts in order
    columns         names of the statistics of an example
    items           [{id, prompt_sha256, item_sha256, statistics, reply …}]

The statistics are what the figures are functions of, so that two results can be
compared example by example without the models.
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
    """A task's result, as above; `examples` become its `items`."""
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
    """Adds {name: {value, interval}} to the baselines of the figures so named."""
    for name, figure in baseline.items():
        kept = {key: figure[key] for key in ('value', 'interval') if key in figure}
        figures[name].setdefault('baselines', {})[label] = kept


def write_results(path: Path, evaluation: Mapping) -> None:
    """Writes JSON with a line for each list of numbers or short texts."""
    storage.write_text(path, to_json(evaluation) + '\n')


def to_json(value, indent: int = 0) -> str:
    """JSON, indented, but lists of plain values stay in a line."""
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
    """Whole numbers without '.0', as they are most of the file; None: not finite."""
    if not math.isfinite(cell):
        return None
    return int(cell) if cell == int(cell) else cell
