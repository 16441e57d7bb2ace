"""Line charts out of braille dots: pure functions from numbers to rows of characters.

Every column of dots covers a span of x and shows the smallest and the largest value in it, so a spike of one step among
100,000 stays on the screen. Where there are fewer points than columns, lines join them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Numbers = Sequence[float] | Sequence[int]

_BRAILLE = 0x2800
_DOT = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot at [row][column] of a braille character of 4 by 2 dots."""
_SIGN_EVERY = 9

Columns = list["tuple[int, int] | None"]
"""For each column of dots the (lowest, highest) dot, counted from below, or None."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `x` ascending, `y` of the same length; values that are not finite are left out."""

    label: str
    x: Numbers
    y: Numbers
    sign: str = ""
    """A character set on the line now and then, so that lines differ without color."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One character of the chart and the series it belongs to."""

    text: str
    series: int
    strong: bool = True
    """Holds the mean of its column; the others only show how far the values spread."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart: `rows[r][c]` is a cell or None; `labels` has a text for some rows; `x_range` is what it spans."""

    rows: list[list[Cell | None]]
    labels: dict[int, str]
    x_range: tuple[float, float] | None


def draw(series: Sequence[Series], width: int, height: int, *, log: bool = False) -> Chart:
    """Draw all series into `height` rows of `width` characters. A logarithmic y axis leaves out values of 0 and below."""
    points = [_finite(line, log) for line in series]
    filled = [(x, y) for x, y in points if len(x)]
    rows: list[list[Cell | None]] = [[None] * width for _ in range(height)]
    if not filled or width < 1 or height < 1:
        return Chart(rows, {}, None)
    x_range = min(float(x[0]) for x, _ in filled), max(float(x[-1]) for x, _ in filled)
    y_range = _widened(min(float(y.min()) for _, y in filled), max(float(y.max()) for _, y in filled))
    for number, ((x, y), line) in enumerate(zip(points, series, strict=True)):
        if len(x):
            dots, means = _dots(x, y, x_range, y_range, 2 * width, 4 * height)
            _paint(rows, dots, means, number)
            if line.sign:
                _set_signs(rows, dots, number, line.sign)
    return Chart(rows, _labels(y_range, height, log), x_range)


def _finite(line: Series, log: bool) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np  # here, so that the first paint of the app does not wait for its import

    x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
    keep = np.isfinite(y) & (y > 0) if log else np.isfinite(y)
    if not keep.all():
        x, y = x[keep], y[keep]
    return x, (np.log10(y) if log else y)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A flat line is drawn in the middle."""
    if high > low:
        return low, high
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _dots(
    x: np.ndarray, y: np.ndarray, x_range: tuple[float, float], y_range: tuple[float, float], width: int, height: int
) -> tuple[Columns, dict[int, int]]:
    """Return the dots to set, and the mean of each column that has several values."""
    import numpy as np

    span = x_range[1] - x_range[0]
    column = np.zeros(len(x), dtype=int) if span <= 0 else ((x - x_range[0]) * ((width - 1) / span)).round().astype(int)
    level = ((y - y_range[0]) * ((height - 1) / (y_range[1] - y_range[0]))).round().astype(int).clip(0, height - 1)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    lows, highs = np.minimum.reduceat(level, starts).tolist(), np.maximum.reduceat(level, starts).tolist()
    firsts, lasts = level[starts].tolist(), level[np.append(starts[1:], len(x)) - 1].tolist()
    dots: Columns = [None] * width
    previous: tuple[int, int] | None = None
    for at, low, high, first, last in zip(column[starts].tolist(), lows, highs, firsts, lasts, strict=True):
        _merge(dots, at, low, high)
        if previous is not None:
            _join(dots, *previous, at, first)
        previous = at, last
    counts = np.diff(np.append(starts, len(x)))
    means = (np.add.reduceat(level, starts) / counts).round().astype(int)
    many = counts > 1
    return dots, dict(zip(column[starts][many].tolist(), means[many].tolist(), strict=True))


def _merge(dots: Columns, at: int, low: int, high: int) -> None:
    old = dots[at]
    dots[at] = (low, high) if old is None else (min(low, old[0]), max(high, old[1]))


def _join(dots: Columns, x0: int, y0: int, x1: int, y1: int) -> None:
    """Draw a line between two points so that neighboring columns touch."""
    level = y0
    for at in range(x0 + 1, x1 + 1):
        target = round(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
        start = level + (1 if target > level else -1 if target < level else 0)
        _merge(dots, at, min(start, target), max(start, target))
        level = target


def _paint(rows: list[list[Cell | None]], dots: Columns, means: dict[int, int], number: int) -> None:
    height = len(rows)
    for at in range(0, len(dots), 2):
        bits = [0] * height
        for side in (0, 1):
            if (span := dots[at + side]) is not None:
                for level in range(span[0], span[1] + 1):
                    bits[height - 1 - level // 4] |= _DOT[3 - level % 4][side]
        centers = {height - 1 - means[c] // 4 for c in (at, at + 1) if c in means}
        for row, value in enumerate(bits):
            if value:
                rows[row][at // 2] = Cell(chr(_BRAILLE + value), number, not centers or row in centers)


def _set_signs(rows: list[list[Cell | None]], dots: Columns, number: int, sign: str) -> None:
    drawn = [at for at in range(0, len(dots), 2) if dots[at] is not None]
    offset = number * 3
    chosen = [at for at in drawn if (at // 2) % _SIGN_EVERY == offset % _SIGN_EVERY] or drawn[-1:]
    for at in chosen:
        span = dots[at]
        if span is not None:
            rows[len(rows) - 1 - (span[0] + span[1]) // 2 // 4][at // 2] = Cell(sign, number)


def _labels(y_range: tuple[float, float], height: int, log: bool) -> dict[int, str]:
    """Label the top, the middle and the bottom row with the value there."""
    low, high = y_range
    wanted = {0: high, height - 1: low}
    if height >= 5:
        wanted[height // 2] = high - (high - low) * (height // 2) / (height - 1)
    return {row: number_label(10**value if log else value) for row, value in wanted.items()}


def number_label(value: float) -> str:
    """Return a number in at most 8 characters: `0.0123`, `1.2e-05`, `12.3k`."""
    if value != 0 and not 1e-3 <= abs(value) < 1e12:
        return f"{value:.2e}"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.4g}"
