from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsft.tui.widgets.chart import Series, draw, number_label


def text(chart):
    return ["".join(cell.text if cell else " " for cell in row) for row in chart.rows]


def test_a_spike_of_one_step_in_100_000_reaches_the_top():
    y = [1.0] * 100_000
    y[77_777] = 9.0
    chart = draw([Series("loss", range(100_000), y)], 60, 10)
    tops = [column for column, cell in enumerate(chart.rows[0]) if cell]
    assert tops == [round(77_777 / 99_999 * 119) // 2]
    assert chart.labels[0] == "9"
    assert chart.labels[9] == "1"


def test_the_mean_of_a_dense_column_is_bright_and_its_spread_is_not():
    y = [0.0, 10.0] * 5000
    chart = draw([Series("loss", range(10_000), y)], 20, 10)
    for column in range(20):
        bright = [row for row in range(10) if chart.rows[row][column] and chart.rows[row][column].strong]
        assert bright
        assert set(bright) <= {4, 5}


def test_lines_join_points_that_are_far_apart():
    chart = draw([Series("loss", [0, 100], [0.0, 1.0])], 30, 8)
    assert all(any(row[column] for row in chart.rows) for column in range(30))


def test_a_line_falls_from_left_to_right():
    chart = draw([Series("loss", [0, 1], [1.0, 0.0])], 10, 5)
    assert chart.rows[0][0]
    assert chart.rows[4][9]
    assert not chart.rows[0][9]


def test_signs_tell_series_apart_without_color():
    x = list(range(100))
    chart = draw([Series("a", x, x), Series("b", x, x[::-1], "o")], 40, 10)
    assert any("o" in row for row in text(chart))


def test_values_that_are_not_finite_are_left_out():
    chart = draw([Series("loss", [1, 2, 3], [1.0, math.nan, math.inf])], 10, 5)
    assert chart.x_range == (1.0, 1.0)
    assert draw([Series("loss", [1], [math.nan])], 10, 5).x_range is None


def test_a_logarithmic_axis_spreads_decades_evenly_and_leaves_out_zero():
    chart = draw([Series("loss", [0, 1, 2, 3], [0.0, 0.01, 1.0, 100.0])], 10, 5, log=True)
    assert (chart.labels[0], chart.labels[2], chart.labels[4]) == ("100", "1", "0.01")
    assert chart.x_range == (1.0, 3.0)


@pytest.mark.parametrize(
    ("value", "label"), [(0, "0"), (2e-5, "2.00e-05"), (0.1234, "0.1234"), (12345, "12.35k"), (3 << 30, "3.221G")]
)
def test_labels_are_short(value, label):
    assert number_label(value) == label


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=60),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
)
def test_any_values_fit_any_size(points, width, height, log):
    points.sort(key=lambda point: point[0])
    chart = draw([Series("any", [x for x, _ in points], [y for _, y in points], "x")], width, height, log=log)
    assert len(chart.rows) == height
    assert all(len(row) == width for row in chart.rows)
    drawable = [y for _, y in points if math.isfinite(y) and (y > 0 or not log)]
    assert (chart.x_range is not None) == bool(drawable)
    assert any(cell for row in chart.rows for cell in row) == bool(drawable)
