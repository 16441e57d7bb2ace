"""Numbers as people read them. One place, so that the command line and the screens say the same."""

from __future__ import annotations

import math


def byte_size(count: float) -> str:
    """Return 3221225472 as `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return 4500 as `1 h 15 min`: the two largest units, `?` where the time is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        value, left = divmod(left, length)
        if value or (unit == "s" and not parts):
            parts.append(f"{value} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def age(seconds: float) -> str:
    """Return 250 as `4 min ago`: the largest unit is enough."""
    return "just now" if seconds < 2 else f"{' '.join(duration(seconds).split()[:2])} ago"


def count(number: float) -> str:
    """Return 1234567 as `1,234,567`."""
    return f"{number:,.0f}"


def decimal(number: float) -> str:
    """Return 1280.0 as `1,280`, 0.25 as `0.25`: at most two decimals."""
    return count(number) if number == round(number) else f"{number:,.2f}".rstrip("0").rstrip(".")


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return `1 document`, `1,280 documents`, `0.25 epochs`: a number with its noun; `plural` where that is not noun and s."""
    text = decimal(number)
    return f"{text} {noun if text == '1' else plural or noun + 's'}"


def short_count(number: float) -> str:
    """Return 1234567 as `1.23 M`: three digits, for places that are narrow."""
    if abs(number) < 1e4:
        return f"{number:,.0f}"
    rounded = float(f"{number:.3g}")
    limit, unit = next(((limit, unit) for limit, unit in _UNITS if abs(rounded) >= limit))
    return f"{rounded / limit:.3g} {unit}" if rounded / limit < 1000 else f"{rounded / limit:,.0f} {unit}"


_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
