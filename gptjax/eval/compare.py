"""Two results side by side: is the difference more than chance?

Both have to be of the same items. The interval of a difference is a paired bootstrap:
each resample draws items, and both results get the same ones. The p-value is that of
a permutation test: how often would a difference as large come up if, item by item, a
coin decided whose result is whose? Neither is corrected for the number of figures.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.eval import bootstrap, perplexity, results
from gptjax.eval.tasks import choice, dialogue_task, reply_metrics, verifiable_replies

OF_ONE_TOKENIZER = ('loss', 'token_perplexity')  # mean nothing beyond it


def compare(first: str, second: str, copy: Path | None = None) -> dict:
    """Compares every task that two results have; a table on the screen.

    Args:
        first, second: run directories, or files that `eval --json` wrote.
        copy: a place for the JSON of what is returned.

    Returns:
        {task: {figure: {first, second, difference, interval, p}}} in `tasks`, with
        `first` and `second` as given, and `notes`.

    Raises:
        UserError: one is no result, they have no task in common, or a task has
            other items in one of them.
    """
    one, other = read(first), read(second)
    tasks, notes = {}, []
    for name in one['tasks']:
        if name in other['tasks'] and 'items' in one['tasks'][name]:
            tasks[name] = differences(name, first, second, one, other)
            left, right = one['tasks'][name], other['tasks'][name]
            notes += _unequal_settings(name, left, right)
    for name in sorted(one['tasks'].keys() ^ other['tasks'].keys()):
        notes.append(f'{name}: only in {first if name in one["tasks"] else second}')
    if not tasks:
        raise UserError(
            f'--compare: {first} and {second} have no task in common: run eval with '
            'the same --tasks for both'
        )
    if one['tokenizer'] != other['tokenizer']:
        notes.append(
            'the tokenizers differ: loss and perplexity of a token are left out'
        )
    found = dict(first=first, second=second, tasks=tasks, notes=notes)
    if copy is not None:
        results.write(copy, found)
    print(_table(found, one['tasks'][next(iter(tasks))]['bootstrap']))
    return found


def read(name: str) -> dict:
    """The result that a run directory or a file holds.

    Raises:
        UserError: there is none, or it is damaged or old.
    """
    path = Path(name).expanduser()
    path = path / 'eval.json' if path.is_dir() else path
    if not path.exists():
        raise UserError(f'--compare: {path}: no such file: run the stage eval first')
    try:
        found = storage.read_json(path)
    except ValueError as error:
        raise UserError(f'--compare: {path} is no JSON ({error})') from error
    if not isinstance(found, dict) or not {'tasks', 'tokenizer'} <= found.keys():
        raise UserError(
            f'--compare: {path} has no results item by item: run the stage eval again'
        )
    return found


def differences(name: str, first: str, second: str, one: dict, other: dict) -> dict:
    """{figure: {first, second, difference, interval, p}} of a task of two results.

    Args:
        name: of the task.
        first, second: what the results are called, for messages.
        one, other: of `read`.

    Raises:
        UserError: the task has other items in one of them.
    """
    left, right = one['tasks'][name], other['tasks'][name]
    right = _same_items(name, left, right, first, second)
    found = _differences(left, right)
    if one['tokenizer'] != other['tokenizer']:
        return {
            figure: its
            for figure, its in found.items()
            if figure.split('/')[0] not in OF_ONE_TOKENIZER
        }
    return found


def _same_items(name, left, right, first, second) -> dict:
    """`right` with its items in the order of `left`'s."""
    if left['kind'] != right['kind'] or left['columns'] != right['columns']:
        raise UserError(
            f'--compare: {name} is another task in {second} than in {first}: evaluate '
            'both anew'
        )
    ours = {item['id']: item for item in left['items']}
    theirs = {item['id']: item for item in right['items']}
    for here, there, place in ((ours, theirs, second), (theirs, ours, first)):
        for id in here:
            if id not in there:
                raise UserError(
                    f'--compare: {name}: {place} lacks the item {id}: evaluate both '
                    'with the same data and eval settings'
                )
    for id, item in ours.items():
        if item['item_sha256'] != theirs[id]['item_sha256']:
            raise UserError(
                f'--compare: {name}: the item {id} is another one in {second}: '
                'evaluate both with the same data and eval settings'
            )
    return dict(right, items=[theirs[id] for id in ours])


def _differences(left: dict, right: dict) -> dict:
    """{figure: {first, second, difference, interval, p}} of one task."""
    how = results.Bootstrap(**left['bootstrap'])
    one, other = results.columns_of(left), results.columns_of(right)
    found = {}
    for part, chosen in _parts(left).items():
        ours, theirs = ({n: c[chosen] for n, c in its.items()} for its in (one, other))
        for name, figure in _figures(left['kind'], one).items():
            samples = bootstrap.paired_differences(
                ours, theirs, figure, how.resamples, how.seed
            )
            p = bootstrap.permutation_p(ours, theirs, figure, how.resamples, how.seed)
            values = [float(figure(bootstrap.total(its))) for its in (ours, theirs)]
            found[name + part] = _difference(*values, samples, p, how)
    if left['kind'] == 'generation':
        replies = [[item['reply'] for item in its['items']] for its in (left, right)]
        for name, n in reply_metrics.DISTINCT.items():
            values = [reply_metrics.distinct(texts, n) for texts in replies]
            samples, p = _paired_distinct(*replies, n, how)
            found[name] = _difference(*values, samples, p, how)
    return found


def _parts(task: dict) -> dict[str, np.ndarray]:
    """Which items count, all, and then by source: {'': …, '/chitchat': …}."""
    sources = np.array([item.get('source', '') for item in task['items']])
    parts = {'': np.ones(len(sources), bool)}
    if len(set(sources)) > 1:
        parts.update({f'/{name}': sources == name for name in np.unique(sources)})
    return parts


def _figures(kind: str, columns: Mapping) -> dict[str, bootstrap.Figure]:
    """What a task of this kind is judged by, from its sums."""
    if kind == 'perplexity':
        return perplexity.FIGURES
    if kind == 'generation':
        return reply_metrics.FIGURES
    if kind == 'choice':
        return choice.FIGURES
    if kind == 'dialogue':
        return dialogue_task.FIGURES
    if kind == 'verifiable':
        return verifiable_replies.FIGURES
    from gptjax.eval.harness import core_suites

    return core_suites.figures_for(columns)


def _difference(first, second, samples, p, how):
    """What is told of a figure; None is where it has no value."""
    values = dict(first=first, second=second, difference=second - first, p=p)
    told = {name: results.finite(value) for name, value in values.items()}
    interval = bootstrap.interval(samples, how.level)
    return dict(told, interval=[results.finite(end) for end in interval])


def _paired_distinct(first: Sequence[str], second: Sequence[str], n: int, how):
    """(bootstrap samples of the difference, p): see `generation.resampled_distinct`."""
    from scipy import sparse

    (one, ours), (other, theirs) = reply_metrics.presence([first, second], n)
    observed = reply_metrics.distinct(second, n) - reply_metrics.distinct(first, n)
    samples = []
    for counts in bootstrap.resample_counts(len(first), how.resamples, how.seed):
        samples.append(
            reply_metrics.share(counts, other, theirs)
            - reply_metrics.share(counts, one, ours)
        )
    samples = np.concatenate(samples)

    random = np.random.default_rng(how.seed)
    swapped = random.integers(2, size=(how.resamples, len(first))).astype(float)
    both = sparse.vstack([one, other]), np.concatenate([ours, theirs])
    permuted = reply_metrics.share(np.hstack([swapped, 1 - swapped]), *both)
    permuted -= reply_metrics.share(np.hstack([1 - swapped, swapped]), *both)
    p = bootstrap.share_as_large(permuted, observed)
    return reply_metrics.centred(samples, observed), p


def _unequal_settings(name, left, right) -> list[str]:
    ours, theirs = left['settings'], right['settings']
    unequal = [key for key in ours if ours[key] != theirs.get(key)]
    return [f'{name}: {key} is {ours[key]} and {theirs.get(key)}' for key in unequal]


def _table(found: Mapping, how: Mapping) -> str:
    rows = [('task', 'figure', 'A', 'B', 'B - A', 'interval', 'p')]
    for name, figures in found['tasks'].items():
        for figure, its in figures.items():
            low, high = (results.short(x) for x in its['interval'])
            cells = (results.short(its[x]) for x in ('first', 'second', 'difference'))
            p = '' if its['p'] is None else f'{its["p"]:.3f}'
            label = results.label_of(figure)
            rows.append((name, label, *cells, f'{low} … {high}', p))
            name = ''
    lines = [
        f'A: {found["first"]}',
        f'B: {found["second"]}',
        f'{how["level"]:.0%} intervals of a paired bootstrap and p-values of a '
        f'permutation test, {how["resamples"]:,} resamples each',
        results.columns_text(rows, right=(2, 3, 4, 6)),
        *(f'note: {note}' for note in found['notes']),
    ]
    return '\n'.join(lines)
