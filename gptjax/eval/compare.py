"""`eval --compare A B`: is the difference of two evaluations more than chance?

The interval of a difference is a paired bootstrap: each resample draws examples, the
same for both evaluations. The p-value is that of a permutation test: how often is the
difference as large if the two results of each example are swapped at random? Neither
is corrected for the number of figures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import bootstrap, perplexity, results
from gptjax.eval.bootstrap import BootstrapSettings
from gptjax.eval.harness import core_suites
from gptjax.eval.report.tables import format_number, label_of, print_table
from gptjax.eval.tasks import (
    choice_task,
    dialogue_task,
    reply_metrics,
    verifiable_replies,
)

NEED_ONE_TOKENIZER = ('loss', 'token_perplexity')  # divided by tokens
FIGURES_OF_KIND = {
    'perplexity': perplexity.FIGURES,
    'generation': reply_metrics.FIGURES,
    'choice': choice_task.FIGURES,
    'dialogue': dialogue_task.FIGURES,
    'verifiable': verifiable_replies.FIGURES,
}


def compare(first: str, second: str, json_path: Path | None = None) -> dict:
    """Compares every task that two evaluations share; prints a table.

    `first` and `second` are run directories, or files that `eval --json` wrote.
    Returns, and writes to `json_path`, {task: {figure: {first, second, difference,
    interval, p}}} in `tasks`, with `first` and `second` as given, and `notes`.
    """
    evaluations = read_evaluation(first), read_evaluation(second)
    first_tasks, second_tasks = (evaluation['tasks'] for evaluation in evaluations)
    compared, notes = {}, []
    for task in first_tasks:
        if task in second_tasks and 'items' in first_tasks[task]:
            compared[task] = compare_task(task, first, second, *evaluations)
            second_settings = second_tasks[task]['settings']
            notes += [
                f'{task}: {name} is {value} and {second_settings.get(name)}'
                for name, value in first_tasks[task]['settings'].items()
                if value != second_settings.get(name)
            ]
    for task in sorted(first_tasks.keys() ^ second_tasks.keys()):
        notes.append(f'{task}: only in {first if task in first_tasks else second}')
    if not compared:
        raise UserError(
            f'--compare: {first} and {second} have no task in common: run eval with '
            'the same --tasks for both'
        )
    if evaluations[0]['tokenizer'] != evaluations[1]['tokenizer']:
        notes.append(
            'the tokenizers differ: loss and perplexity of a token are left out'
        )
    comparison = dict(first=first, second=second, tasks=compared, notes=notes)
    if json_path is not None:
        results.write_results(json_path, comparison)
    settings = BootstrapSettings(**first_tasks[next(iter(compared))]['bootstrap'])
    _print_comparison(comparison, settings)
    return comparison


def read_evaluation(name: str) -> dict:
    """Reads the evaluation in a run directory or a file."""
    path = Path(name).expanduser()
    path = path / 'eval.json' if path.is_dir() else path
    if not path.exists():
        raise UserError(f'--compare: {path}: no such file: run the stage eval first')
    try:
        evaluation = storage.read_json(path)
    except ValueError as error:
        raise UserError(
            f'--compare: {path} is not valid JSON ({error}): run the stage eval again'
        ) from error
    if not isinstance(evaluation, dict) or not {'tasks', 'tokenizer'} <= set(
        evaluation
    ):
        raise UserError(
            f'--compare: {path} has no results of single examples: run the stage eval '
            'again'
        )
    return evaluation


def compare_task(
    task: str, first: str, second: str, first_evaluation: dict, second_evaluation: dict
) -> dict:
    """{figure: {first, second, difference, interval, p}} of one task.

    `first` and `second` name the evaluations in messages.
    """
    first_result = first_evaluation['tasks'][task]
    second_result = second_evaluation['tasks'][task]
    second_result = _in_same_order(task, first_result, second_result, first, second)
    differences = _compute_differences(first_result, second_result)
    if first_evaluation['tokenizer'] == second_evaluation['tokenizer']:
        return differences
    return {
        figure: difference
        for figure, difference in differences.items()
        if figure.split('/')[0] not in NEED_ONE_TOKENIZER
    }


def _in_same_order(task, first_result, second_result, first, second) -> dict:
    """The second result, with the examples in the order of the first result."""
    first_columns, second_columns = (
        set(result['columns']).difference(reply_metrics.LATER_COLUMNS)
        for result in (first_result, second_result)
    )
    if (first_result['kind'], first_columns) != (second_result['kind'], second_columns):
        raise UserError(
            f'--compare: {task} has another kind or other columns in {second} than in '
            f'{first}: evaluate both again, with the same task'
        )
    first_items, second_items = map(_number_items, (first_result, second_result))
    first_ids, second_ids = ({id for id, *_ in i} for i in (first_items, second_items))
    for id in [*first_ids, *second_ids]:
        if not (id in first_ids and id in second_ids):
            raise UserError(
                f'--compare: {task}: {second if id in first_ids else first} lacks '
                f'the item {id}: evaluate both with the same data and eval settings'
            )
    for id, *_ in first_items.keys() ^ second_items.keys():
        raise UserError(
            f'--compare: {task}: the item {id} has another content in {second}: '
            'evaluate both with the same data and eval settings'
        )
    return dict(second_result, items=[second_items[key] for key in first_items])


def _number_items(result: dict) -> dict[tuple, dict]:
    """The items by (id, hash, number of equal items before it): ids may repeat."""
    numbers, items = Counter(), {}
    for item in result['items']:
        key = item['id'], item['item_sha256']
        items[*key, numbers[key]] = item
        numbers[key] += 1
    return items


def _compute_differences(first_result: dict, second_result: dict) -> dict:
    """{figure: {first, second, difference, interval, p}}, overall and by source."""
    settings = BootstrapSettings(**first_result['bootstrap'])
    resamples, level, seed = settings
    columns = [results.read_columns(r) for r in (first_result, second_result)]
    shared = [name for name in columns[0] if name in columns[1]]
    columns = [{name: its[name] for name in shared} for its in columns]
    if first_result['kind'] in FIGURES_OF_KIND:
        lacking = set(reply_metrics.LATER_COLUMNS).difference(shared)
        figures = {
            name: figure
            for name, figure in FIGURES_OF_KIND[first_result['kind']].items()
            if name not in lacking
        }
    else:
        figures = core_suites.figures_for(columns[0])
    sources = np.array([item.get('source', '') for item in first_result['items']])
    subsets = {'': np.ones(len(sources), bool)}
    if len(set(sources)) > 1:
        subsets.update({f'/{name}': sources == name for name in np.unique(sources)})

    differences = {}
    for suffix, chosen in subsets.items():
        pair = [{n: column[chosen] for n, column in c.items()} for c in columns]
        for name, figure in figures.items():
            values = [float(figure(bootstrap.sum_columns(c))) for c in pair]
            samples = bootstrap.resample_differences(*pair, figure, resamples, seed)
            p = bootstrap.compute_p_value(*pair, figure, resamples, seed)
            differences[name + suffix] = _difference(*values, samples, p, level)
    if first_result['kind'] == 'generation':
        replies = [
            [item['reply'] for item in result['items']]
            for result in (first_result, second_result)
        ]
        for name, n in reply_metrics.DISTINCT.items():
            values = [reply_metrics.distinct(texts, n) for texts in replies]
            samples, p = reply_metrics.compare_distinct(*replies, n, resamples, seed)
            differences[name] = _difference(*values, samples, p, level)
    return differences


def _difference(first, second, samples, p, level) -> dict:
    values = dict(first=first, second=second, difference=second - first, p=p)
    interval = bootstrap.compute_interval(samples, level)
    return dict(
        {name: bootstrap.finite_or_none(value) for name, value in values.items()},
        interval=[bootstrap.finite_or_none(end) for end in interval],
    )


def _print_comparison(comparison: Mapping, settings: BootstrapSettings) -> None:
    rows: list[Sequence[str]] = [('task', 'figure', 'A', 'B', 'B - A', 'interval', 'p')]
    for task, differences in comparison['tasks'].items():
        for figure, row in differences.items():
            low, high = map(format_number, row['interval'])
            values = [format_number(row[n]) for n in ('first', 'second', 'difference')]
            p = '' if row['p'] is None else f'{row["p"]:.3f}'
            rows.append((task, label_of(figure), *values, f'{low} … {high}', p))
            task = ''
    print(
        f'A: {comparison["first"]}\nB: {comparison["second"]}\n'
        f'{settings.level:.0%} intervals of a paired bootstrap and p-values of a '
        f'permutation test, {settings.resamples:,} resamples each'
    )
    print_table(rows, right_aligned=(2, 3, 4, 6))
    for note in comparison['notes']:
        print(f'note: {note}')
