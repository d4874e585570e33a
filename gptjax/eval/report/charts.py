"""Charts as inline SVG, drawn by the templates `…_chart.html.j2` at places given here.

Colours are CSS classes, so that one chart serves the light and the dark page. Each
chart shrinks to the width of a phone, and shows the values at a step on hover.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gptjax.eval.report.tables import format_short
from gptjax.eval.report.templates import render

WIDTH, HEIGHT = 460, 260
TOP, BOTTOM, LEFT = 14, 236, 46  # the edges of the axes
LABEL_HEIGHT = 15  # the least distance of two labels
COLUMNS = 60  # the most steps that show their values on hover


class Series(NamedTuple):
    """A line; its label and last value, if it has a label, stand at its end."""

    label: str
    css_class: str  # 'train', 'validation', 'quiet', 'main'; 'points': without a line
    points: Sequence[tuple[float, float]]  # x ascending


class Axis(NamedTuple):
    """`place` maps a value to 0 at the bottom … 1 at the top, or from left to right."""

    place: Callable[[float], float]
    ticks: list[float]


def linear_axis(values: Sequence[float]) -> Axis:
    """From the least to the greatest value, with a margin."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    low, high = low - 0.04 * spread, high + 0.06 * spread
    return Axis(lambda y: (y - low) / (high - low), nice_ticks(low, high, 5))


def linear_axis_from_zero(values: Sequence[float]) -> Axis:
    """From 0 to the greatest value, with a margin."""
    high = 1.08 * max(max(values), 0.0) or 1.0
    return Axis(lambda y: y / high, nice_ticks(0.0, high, 5))


def log_axis(values: Sequence[float]) -> Axis:
    """Logarithmic; values that are not positive are at the bottom."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log(min(positive) / 1.15), math.log(max(positive) * 1.15)

    def place(y):
        return (math.log(y) - low) / (high - low) if y > 0 else 0.0

    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)))
    ticks = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if 0 <= place(tick) <= 1]
    if len(ticks) > 6:
        ticks = [tick for tick in ticks if f'{tick:e}'.startswith('1')]
    return Axis(place, ticks)


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    levels: Sequence[tuple[str, float]] = (),
    make_axis: Callable[[Sequence[float]], Axis] = linear_axis,
    note: str = '',
    across: str = 'step',
    log_across: bool = False,
) -> str:
    """HTML of a chart; '' when no series has a point.

    Args:
        levels: (label, value) of horizontal lines.
        note: a sentence below the title.
        across: what the horizontal axis shows.
        log_across: its scale is logarithmic, and it does not begin at 0.
    """
    series = [line for line in series if line.points]
    if not series:
        return ''
    values = [y for line in series for _, y in line.points]
    axis = make_axis([*values, *(value for _, value in levels)])
    labelled = [line for line in series if line.label]
    right = WIDTH - (88 if labelled else 16)
    # A letter and its value stand on one line, other labels above their value.
    on_one_line = all(len(line.label) == 1 for line in labelled)
    label_height = LABEL_HEIGHT if on_one_line else 2 * LABEL_HEIGHT
    first = min(0, *(line.points[0][0] for line in series))
    last = max(line.points[-1][0] for line in series)
    x_axis = Axis(
        lambda x: (x - first) / (last - first or 1), nice_ticks(first, last, 4)
    )
    if log_across:
        x_axis = log_axis([x for line in series for x, _ in line.points])

    def to_x(x):
        return LEFT + (right - LEFT) * x_axis.place(x)

    def to_y(y):
        return TOP + (BOTTOM - TOP) * (1 - axis.place(y))

    level_heights = _move_apart([to_y(value) - 5 for _, value in levels])
    ends = [to_y(line.points[-1][1]) for line in labelled]
    return render(
        'line_chart.html.j2',
        **dict(title=title, unit=unit, note=note, across=across, series=series),
        **dict(width=WIDTH, height=HEIGHT, top=TOP, bottom=BOTTOM, left=LEFT),
        **dict(right=right, to_x=to_x, to_y=to_y, y_ticks=axis.ticks),
        x_ticks=[x for x in x_axis.ticks if across != 'step' or x == int(x)],
        levels=[(*level, y) for level, y in zip(levels, level_heights, strict=True)],
        labelled=zip(labelled, _move_apart(ends, label_height), strict=True),
        on_one_line=on_one_line,
        columns=_hover_columns(series, to_x, title, across),
    )


def histogram(
    title: str, unit: str, quiet: Sequence[int], main: Sequence[int], note: str = ''
) -> str:
    """HTML of a histogram over powers of two; '' without values.

    Args:
        quiet: whole numbers; the pale bars count them.
        main: whole numbers; the bars in front count them.
    """
    if not len(quiet) and not len(main):
        return ''
    pale, dark = (Counter(int(x).bit_length() for x in xs) for xs in (quiet, main))
    first = min([*pale, *dark])
    last = max(first + 7, *pale, *dark)  # one bar would fill the chart
    axis = linear_axis_from_zero([*pale.values(), *dark.values()])
    right, bins = WIDTH - 16, range(first, last + 1)
    width = (right - LEFT) / len(bins)
    bars = [
        (LEFT + width * place, 2**size >> 1, pale[size], dark[size])
        for place, size in enumerate(bins)
    ]
    return render(
        'histogram_chart.html.j2',
        **dict(title=title, unit=unit, note=note, axis=axis, bars=bars, bar=width),
        **dict(width=WIDTH, height=HEIGHT, top=TOP, bottom=BOTTOM, left=LEFT),
        **dict(right=right, label_every=math.ceil(len(bins) / 8)),
    )


def moving_average(points: Sequence[tuple[float, float]], window: int):
    """The mean of each point and its neighbours, `window` in all, fewer at the ends."""
    if not points:
        return []
    x, y = np.transpose(points)
    sums, place = np.cumsum([0.0, *y]), np.arange(len(y))
    reach = np.minimum(window // 2, np.minimum(place, place[::-1]))
    means = (sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1)
    return list(zip(x.tolist(), means.tolist(), strict=True))


def thin(points: Sequence[tuple[float, float]], most: int = 400):
    """At most `most` + 1 points, evenly spread, the first and last among them."""
    if len(points) <= most:
        return list(points)
    stride = math.ceil(len(points) / most)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f'{n * step:.12g}') for n in range(first, last + 1)]


def _hover_columns(series, to_x, title, across):
    """(left edge, width, text) of the rectangles that show the values on hover."""
    longest = max(series, key=lambda line: len(line.points))
    steps = [x for x, _ in thin(longest.points, COLUMNS)]
    centres = [to_x(step) for step in steps]
    edges = [(a + b) / 2 for a, b in pairwise([centres[0], *centres, centres[-1]])]
    columns = []
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        values = []
        for line in series:
            _, y = min(line.points, key=lambda point: abs(point[0] - step))
            if line.label or len(series) == 1:
                values.append(f'{line.label or title} {format_short(y)}')
        shown = f'{step:,.0f}' if across == 'step' else format_short(step)
        text = f'{across} {shown}: {", ".join(values)}'
        columns.append((left, max(right - left, 1), text))
    return columns


def _move_apart(heights: Sequence[float], least: float = LABEL_HEIGHT) -> list[float]:
    """Moves labels up until they are `least` apart."""
    placed, ceiling = [0.0] * len(heights), math.inf
    for i in sorted(range(len(heights)), key=lambda i: -heights[i]):
        placed[i] = min(heights[i], ceiling)
        ceiling = placed[i] - least
    return placed
