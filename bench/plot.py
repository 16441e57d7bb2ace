"""The training comparison as a picture: a bar for each program and precision, with its spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_LABELS, _BARS, _ROW = 130, 420, 34
_COLORS = {"medsft": "#2a7f62", "trl": "#8a8f98"}


def write_bars(path: Path, title: str, series: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Write an SVG of the medians of `series`, by (program, precision), with a line from the least to the most."""
    most = max(max(values) for values in series.values())
    rows = [_bar(index, key, values, most) for index, (key, values) in enumerate(series.items())]
    width, height = _LABELS + _BARS + 90, _ROW * (len(rows) + 1) + 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    path.write_text("\n".join([head, ground, _text(10, 22, title), *rows, "</svg>\n"]), encoding="utf-8")


def _bar(index: int, key: tuple[str, str], values: Sequence[float], most: float) -> str:
    top, middle = _ROW * (index + 1), statistics.median(values)
    low, mid, high = (_LABELS + _BARS * value / most for value in (min(values), middle, max(values)))
    color = _COLORS.get(key[0], "#4a6fa5")
    bar = f'<rect x="{_LABELS}" y="{top}" width="{mid - _LABELS:.1f}" height="22" fill="{color}"/>'
    spread = f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{top + 11}" y2="{top + 11}" stroke="black"/>'
    return bar + spread + _text(10, top + 16, " ".join(key)) + _text(high + 8, top + 16, f"{middle:.0f}")


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y}">{escape(text)}</text>'
