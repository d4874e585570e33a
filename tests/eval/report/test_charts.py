"""Charts: axes, ticks and smoothing by hand; the drawings are well-formed XML."""

import xml.etree.ElementTree as xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.eval.report import charts
from gptjax.eval.report.charts import Series
from gptjax.eval.report.tables import format_short


def drawing(html):
    """The SVG in a chart's HTML, as a tree."""
    return xml.fromstring(html[html.index('<svg') : html.rindex('</svg>') + 6])


def test_a_line_is_where_its_values_say():
    points = [(0, 0.0), (50, 5.0), (100, 10.0)]
    line, axis = Series('', 'main', points), charts.linear_axis_from_zero
    svg = drawing(charts.line_chart('Rate', 'unit', [line], make_axis=axis))
    places = [
        tuple(map(float, place.split(',')))
        for place in svg.find('.//polyline').get('points').split()
    ]
    left, right = charts.LEFT, charts.WIDTH - 16
    bottom, height = charts.BOTTOM, charts.BOTTOM - charts.TOP
    expected = [
        (left, bottom),
        ((left + right) / 2, bottom - height * 5 / 10.8),
        (right, bottom - height * 10 / 10.8),
    ]
    for place, (x, y) in zip(places, expected, strict=True):
        assert place == pytest.approx((x, y), abs=0.06)


def test_texts_are_escaped_and_values_are_shown_on_hover():
    line = Series('x & y', 'train', [(1, 2.0), (2, 1.0)])
    html = charts.line_chart('a < b', '<i>', [line], [('<', 3)])
    assert '<i>' not in html.replace('&lt;i&gt;', '')
    svg = drawing(html)
    titles = [title.text for title in svg.iter('title')]
    assert titles == ['step 1: x & y 2', 'step 2: x & y 1']
    words = [text.text for text in svg.iter('text')]
    assert 'x & y' in words and '< 3' in words
    assert charts.line_chart('no points', 'u', [line._replace(points=[])]) == ''


@pytest.mark.parametrize(
    'points', [[(1, 2.0)], [(1, 0.0), (2, 0.0)], [(5, -1.0), (6, -1.0)]]
)
@pytest.mark.parametrize(
    'axis', [charts.linear_axis, charts.linear_axis_from_zero, charts.log_axis]
)
def test_few_or_equal_values_are_drawn(points, axis):
    line = Series('a', 'validation', points)
    svg = drawing(charts.line_chart('t', 'u', [line], (), axis))
    assert 'nan' not in svg.find('.//polyline').get('points')


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_axes_hold_their_values_in_order(values):
    for make in (charts.linear_axis, charts.linear_axis_from_zero, charts.log_axis):
        axis = make(values)
        places = [axis.place(value) for value in sorted(values)]
        assert places == sorted(places)
        assert 0 <= places[0] + 1e-9 and places[-1] <= 1 + 1e-9
        assert all(-1e-6 <= axis.place(tick) <= 1 + 1e-6 for tick in axis.ticks)


def test_ticks_by_hand():
    assert charts.nice_ticks(0, 1500, 4) == [0, 500, 1000, 1500]
    assert charts.nice_ticks(1.62, 2.6, 5) == [1.8, 2.0, 2.2, 2.4, 2.6]
    assert charts.nice_ticks(3, 3, 5) == [3]
    assert charts.log_axis([0.15, 3.0]).ticks == pytest.approx([0.2, 0.5, 1, 2])


def test_numbers_are_short():
    values = (0, 2.6431, 54.21, 0.0025, 3e-5, 340, 5000, 12_345, 3_072_000)
    texts = map(format_short, (*values, float('inf'), float('nan')))
    expected = '0 2.643 54.2 0.0025 3e-05 340 5000 12.3k 3.07M ∞ –'
    assert list(texts) == expected.split()


def test_moving_average_by_hand():
    points = [(1, 1.0), (2, 5.0), (3, 3.0), (4, 7.0), (5, 2.0)]
    smooth = charts.moving_average(points, 3)
    assert [x for x, _ in smooth] == [1, 2, 3, 4, 5]
    assert [y for _, y in smooth] == pytest.approx([1, 3, 5, 4, 2])
    assert charts.moving_average(points, 1) == points


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 500))
def test_thinning_keeps_the_ends(count, most):
    points = [(x, 0.0) for x in range(count)]
    kept = charts.thin(points, most)
    assert len(kept) <= most + 1
    assert kept[0] == points[0] and kept[-1] == points[-1]


@settings(deadline=None)
@given(st.lists(st.floats(0, 300), max_size=6))
def test_labels_stay_apart_and_in_order(heights):
    placed = charts._move_apart(heights, 15)
    ordered = sorted(zip(heights, placed, strict=True))
    for (_, upper), (_, lower) in zip(ordered, ordered[1:], strict=False):
        assert lower - upper >= 15 - 1e-6
    assert all(after <= before for before, after in zip(heights, placed, strict=True))
