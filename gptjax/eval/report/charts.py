"""Charts as inline SVG and HTML: no library, no script, colours from the page.

Colours are CSS classes, so that one chart serves the light and the dark page. Each
chart is drawn at the width it has on a desktop and shrinks to a phone's; columns of
a line chart show the values there when pointed at.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 460, 260
TOP, BOTTOM, LEFT = 14, 24, 46
LABEL_HEIGHT = 15  # labels keep this far apart
CLIP = 5  # lines may leave the frame by this much: half a mark
COLUMNS = 60  # that can be pointed at


class Series(NamedTuple):
    """A line: `css_class` is the CSS class 'train', 'validation', 'quiet' or 'main'.

    One with a label has it, and its last value, beside its end.
    """

    label: str
    css_class: str
    points: Sequence[tuple[float, float]]  # x ascending


class Axis(NamedTuple):
    """The vertical axis: `place` takes a value to 0 at the bottom, 1 on top."""

    place: Callable[[float], float]
    ticks: list[float]


def linear_axis(values: Sequence[float]) -> Axis:
    """From the least to the greatest value, a little beyond them."""
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    low, high = low - 0.04 * spread, high + 0.06 * spread
    return Axis(lambda y: (y - low) / (high - low), nice_ticks(low, high, 5))


def linear_axis_from_zero(values: Sequence[float]) -> Axis:
    """From 0 to the greatest value."""
    high = 1.08 * max(max(values), 0.0) or 1.0
    return Axis(lambda y: y / high, nice_ticks(0.0, high, 5))


def log_axis(values: Sequence[float]) -> Axis:
    """Powers of ten with 2 and 5 between them; what is not above 0 is at the bottom."""
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
) -> str:
    """HTML of lines over the training step or something else; '' without any point.

    `levels` are (label, value) of horizontal lines; `note` is a line below the title;
    the horizontal axis counts `across`.
    """
    series = [line for line in series if line.points]
    if not series:
        return ''
    values = [y for line in series for _, y in line.points]
    frame = _frame(series, make_axis([*values, *(value for _, value in levels)]))
    drawn = _grid(frame, across) + _levels(frame, levels)
    drawn += _clipped(frame, ''.join(_line(frame, line) for line in series))
    drawn += _end_labels(frame, [line for line in series if line.label])
    drawn += _columns(frame, series, title, across)
    caption = f'<b>{escape(title)}</b> <span>{escape(unit)}</span>'
    caption += f'<small>{escape(note)}</small>' if note else ''
    return (
        f'<figure><figcaption>{caption}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'{drawn}</svg></figure>'
    )


def bar_chart(bars: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars from 0: (label, value, CSS class 'main' or 'baseline')."""
    longest = max((value for _, value, _ in bars), default=0) or 1
    rows = ''.join(
        f'<div class="bar {css_class}"><span>{escape(label)}</span><div>'
        f'<i style="width:calc((100% - 60px) * {value / longest:.4f})"></i>'
        f'<b>{value:.3f}</b></div></div>'
        for label, value, css_class in bars
    )
    return f'<div class="bars">{rows}</div>'


def moving_average(points: Sequence[tuple[float, float]], window: int):
    """Each point's mean with its neighbours, `window` in all, fewer at the ends."""
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    half = window // 2
    smooth = []
    for place, (x, _) in enumerate(points):
        reach = min(half, place, len(points) - 1 - place)
        first, last = place - reach, place + reach + 1
        smooth.append((x, (sums[last] - sums[first]) / (last - first)))
    return smooth


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


def number(value: float) -> str:
    """Short: 12k, 1.5M, 340, 2.51, 0.0025, 3e-05."""
    if not math.isfinite(value):
        return '∞' if value > 0 else '–'
    size = abs(value)
    for limit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
        if size >= limit:
            return f'{value / (1e3 if letter == "k" else limit):.3g}{letter}'
    if size >= 1000 or value == int(value):
        return f'{value:.0f}'
    return (
        f'{value:.3g}' if size < 1 else f'{value:.4g}' if size < 10 else f'{value:.3g}'
    )


# ---- the parts of a line chart


class _Frame(NamedTuple):
    """Where the data lies: `to_x` and `to_y` turn values into the drawing's units."""

    to_x: Callable[[float], float]
    to_y: Callable[[float], float]
    right: float  # where the lines end and their labels begin
    steps: tuple[float, float]
    axis: Axis


def _frame(series, axis):
    first = min(0, min(line.points[0][0] for line in series))
    last = max(line.points[-1][0] for line in series)
    right = WIDTH - (88 if any(line.label for line in series) else 16)
    return _Frame(
        to_x=lambda x: LEFT + (right - LEFT) * (x - first) / (last - first or 1),
        to_y=lambda y: TOP + (HEIGHT - TOP - BOTTOM) * (1 - axis.place(y)),
        right=right,
        steps=(first, last),
        axis=axis,
    )


def _grid(frame, across):
    drawn = ''
    for tick in frame.axis.ticks:
        y = frame.to_y(tick)
        drawn += _horizontal(frame, y, 'grid')
        drawn += _text(LEFT - 7, y + 4.5, 'tick', 'end', number(tick))
    for tick in nice_ticks(*frame.steps, 4):
        if tick == int(tick) or across != 'step':
            x = frame.to_x(tick)
            drawn += _text(x, HEIGHT - BOTTOM + 18, 'tick', 'middle', number(tick))
    return drawn + _text(LEFT - 10, HEIGHT - BOTTOM + 18, 'tick', 'end', across)


def _levels(frame, levels):
    drawn = ''
    heights = _apart([frame.to_y(value) - 5 for _, value in levels])
    for (label, value), height in zip(levels, heights, strict=True):
        drawn += _horizontal(frame, frame.to_y(value), 'level')
        drawn += _text(frame.right, height, 'level', 'end', f'{label} {number(value)}')
    return drawn


def _line(frame, line):
    coordinates = [(frame.to_x(x), frame.to_y(y)) for x, y in line.points]
    path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in coordinates)
    drawn = f'<polyline class="{line.css_class}" points="{path}"/>'
    if line.css_class == 'validation' and len(coordinates) <= 40:
        for x, y in coordinates:
            drawn += f'<circle class="validation" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    return drawn


def _clipped(frame, drawn):
    """`drawn` where the data belongs, less what an axis leaves out."""
    x, y = LEFT - CLIP, TOP - CLIP
    width = frame.right - LEFT + 2 * CLIP
    height = HEIGHT - TOP - BOTTOM + 2 * CLIP
    return (
        f'<svg x="{x}" y="{y}" width="{width}" height="{height}" '
        f'viewBox="{x} {y} {width} {height}">{drawn}</svg>'
    )


def _end_labels(frame, lines):
    """Each line's name and last value, beside its end."""
    drawn, x = '', frame.right + 8
    heights = [frame.to_y(line.points[-1][1]) for line in lines]
    for line, y in zip(lines, _apart(heights, 2 * LABEL_HEIGHT), strict=True):
        last = number(line.points[-1][1])
        css_class = line.css_class
        drawn += _text(x, y - 2, css_class, 'start', line.label)
        drawn += _text(x, y - 2 + LABEL_HEIGHT, f'{css_class} value', 'start', last)
    return drawn


def _columns(frame, series, title, across):
    """Invisible columns that show the values at a step when pointed at."""
    longest = max(series, key=lambda line: len(line.points))
    steps = [x for x, _ in thin(longest.points, COLUMNS)]
    centres = [frame.to_x(step) for step in steps]
    edges = [(a + b) / 2 for a, b in pairwise([centres[0], *centres, centres[-1]])]
    drawn = ''
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        values = []
        for line in series:
            nearest = min(line.points, key=lambda point: abs(point[0] - step))
            if line.label or len(series) == 1:
                values.append(f'{line.label or title} {number(nearest[1])}')
        here = f'{step:,.0f}' if across == 'step' else number(step)
        column_title = escape(f'{across} {here}: {", ".join(values)}')
        drawn += (
            f'<rect class="column" x="{left:.1f}" y="{TOP}" '
            f'width="{max(right - left, 1):.1f}" height="{HEIGHT - TOP - BOTTOM}">'
            f'<title>{column_title}</title></rect>'
        )
    return drawn


def _horizontal(frame, y, css_class):
    return (
        f'<line class="{css_class}" x1="{LEFT}" x2="{frame.right}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
    )


def _text(x, y, css_class, anchor, text):
    return (
        f'<text class="{css_class}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f'{escape(text)}</text>'
    )


def _apart(heights: Sequence[float], least: float = LABEL_HEIGHT) -> list[float]:
    """Heights moved up where needed so that labels are `least` apart."""
    placed, ceiling = [0.0] * len(heights), math.inf
    for i in sorted(range(len(heights)), key=lambda i: -heights[i]):
        placed[i] = min(heights[i], ceiling)
        ceiling = placed[i] - least
    return placed
