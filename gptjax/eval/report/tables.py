"""Figures as text, and tables of them on the screen."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

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
    'exact_match': 'exact match of SQuAD',
    'exact': 'equal as written',
    'number': 'equal as a number',
    'repetition': 'repeated 4-grams',
    'distinct_1': 'distinct-1',
    'distinct_2': 'distinct-2',
    'words': 'words in a reply',
    'accuracy': 'accuracy',
    'accuracy_tokens': 'accuracy, per token',
    'accuracy_bytes': 'accuracy, per byte',
    'reply_bits': 'bits per byte of replies',
    'reply_bits_open': 'the same without end tokens',
    'stops': 'ends by itself',
    'accuracy_drawn': 'accuracy, temperature 1',
    'pass_at_8': 'pass@8',
    'stops_drawn': 'ends, temperature 1',
    'reply_tokens': 'tokens in a reply',
}
# Tables and cards have these figures of each kind of task; RUN/eval.json has all.
FIGURES_OF_KIND = dict(
    perplexity=('bits_per_byte',),
    dialogue=('reply_bits', 'accuracy_tokens', 'stops', 'stops_drawn'),
    verifiable=('accuracy', 'accuracy_drawn', 'pass_at_8'),
)


def label_of(figure_name: str) -> str:
    """'bits_per_byte/chitchat' → 'bits per byte, chitchat'."""
    name, _, source = figure_name.partition('/')
    return LABELS.get(name, name) + (f', {source}' if source else '')


def format_number(value: float | None) -> str:
    """1.2345 → '1.234', 12345.6 → '12,345.6', None → '–'."""
    if value is None:
        return '–'
    return f'{value:.3f}' if abs(value) < 10 else f'{value:,.1f}'


def format_short(value: float) -> str:
    """12345 → '12.3k', 340.2 → '340', 2.5134 → '2.513', infinity → '∞', NaN → '–'."""
    if not math.isfinite(value):
        return '∞' if value > 0 else '–'
    size = abs(value)
    for limit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if size >= limit:
            return f'{value / (1e3 if letter == "k" else limit):.3g}{letter}'
    if size >= 1000 or value == int(value):
        return f'{value:.0f}'
    return f'{value:.4g}' if 1 <= size < 10 else f'{value:.3g}'


def format_interval(interval: Sequence[float | None] | None) -> str:
    """[1.23, 1.31] → ' (1.230 … 1.310)', to follow a value; None → ''."""
    if not interval:
        return ''
    low, high = map(format_number, interval)
    return f' ({low} … {high})'


def format_figure(figure: Mapping) -> str:
    """{value, interval} → '1.250 (1.230 … 1.310)'; a baseline may have no interval."""
    return format_number(figure['value']) + format_interval(figure.get('interval'))


def figure_rows(tasks: Mapping[str, dict]) -> Iterator[tuple]:
    """(task, label, value, interval, baselines) of each figure of each task.

    Only the first row of a task has the task's name.
    """
    for task_name, result in tasks.items():
        for figure_name, figure in result['figures'].items():
            yield (
                task_name,
                label_of(figure_name),
                format_number(figure['value']),
                format_interval(figure['interval']).strip(),
                figure.get('baselines', {}),
            )
            task_name = ''


def print_table(rows: Sequence[Sequence[str]], right_aligned: Sequence[int] = ()):
    """Prints aligned columns; the first row is the heading.

    On a narrow terminal the cells wrap; in a file or a pipe each row is one line.

    Args:
        right_aligned: the numbers of the columns that are aligned to the right.
    """
    table = Table(*rows[0], box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(table.columns):
        column.overflow = 'fold'
        column.justify = 'right' if number in right_aligned else 'left'
    for row in rows[1:]:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


def print_tasks(heading: str, tasks: Mapping[str, dict]) -> None:
    """Prints the figures of all tasks, a line each, with their baselines."""
    rows = [('task', 'figure', 'value', 'interval', 'baselines')]
    for *cells, baselines in figure_rows(tasks):
        texts = [f'{format_figure(f)} {label}' for label, f in baselines.items()]
        rows.append((*cells, ' · '.join(texts)))
    print(heading)
    print_table(rows, right_aligned=[2])
