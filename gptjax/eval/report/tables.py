"""Tables and pages of figures: as text for the screen, as HTML for a report."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

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


# ---- figures as text


def label_of(figure_name: str) -> str:
    """'bits per byte, chitchat' of 'bits_per_byte/chitchat'."""
    name, _, source = figure_name.partition('/')
    return LABELS.get(name, name) + (f', {source}' if source else '')


def format_number(value: float | None) -> str:
    """Three digits behind the point of a small number; '–' of None."""
    if value is None:
        return '–'
    return f'{value:.3f}' if abs(value) < 10 else f'{value:,.1f}'


def format_interval(interval: Sequence[float | None] | None) -> str:
    """' (1.23 … 1.31)', to stand behind a value; '' of None."""
    if not interval:
        return ''
    low, high = map(format_number, interval)
    return f' ({low} … {high})'


def format_figure(figure: Mapping) -> str:
    """'1.25 (1.23 … 1.31)' of {value, interval}; a baseline may have no interval."""
    return format_number(figure['value']) + format_interval(figure.get('interval'))


def figure_rows(tasks: Mapping[str, dict]) -> Iterator[tuple]:
    """(task, label, value, interval, baselines) of each figure of each task.

    The task's name is '' below its first row.
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


def text_table(rows: Sequence[Sequence[str]], right_aligned: Sequence[int] = ()) -> str:
    """Aligned columns of text; the first row is the heading.

    `right_aligned` has the numbers of the columns that are aligned to the right.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right_aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    return '\n'.join(lines)


def tasks_text(heading: str, tasks: Mapping[str, dict]) -> str:
    """The figures of all tasks for the screen, a line each, with their baselines."""
    rows = [('task', 'figure', 'value', 'interval', 'beside it')]
    for *cells, baselines in figure_rows(tasks):
        texts = [f'{format_figure(f)} {label}' for label, f in baselines.items()]
        rows.append((*cells, ' · '.join(texts)))
    return f'{heading}\n{text_table(rows, right_aligned=(2,))}'


# ---- HTML

Cell = str | tuple[str, str]  # its text, or (its text, a small note below it)


def html_table(
    rows: Sequence[Sequence[Cell]], heading: Sequence[str] = (), highlighted: str = ''
) -> str:
    """A table that scrolls sideways where the page is narrow; all text is escaped.

    Line breaks in `heading` are kept; the row whose first cell is `highlighted` stands
    out.
    """
    html = ''
    if heading:
        titles = (escape(title).replace('\n', '<br>') for title in heading)
        html = f'<tr>{"".join(f"<th>{title}</th>" for title in titles)}</tr>'
    for row in rows:
        row_class = ' class="main"' if highlighted and row[0] == highlighted else ''
        html += f'<tr{row_class}>{"".join(map(_html_cell, row))}</tr>'
    return f'<div class="wide"><table>{html}</table></div>'


def _html_cell(cell: Cell) -> str:
    text, note = (cell, '') if isinstance(cell, str) else cell
    note = f'<span class="about">{escape(note)}</span>' if note else ''
    return f'<td>{escape(text)}{note}</td>'


def html_page(title: str, body: str) -> str:
    """A page that needs no other file: `body` is HTML, `title` is text."""
    css = Path(__file__).with_name('report.css').read_text(encoding='utf-8')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><style>\n{css}</style></head>\n'
        f'<body><main>\n{body}\n</main></body></html>\n'
    )
