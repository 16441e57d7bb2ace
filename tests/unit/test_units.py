from __future__ import annotations

import pytest

from medsft.core.units import age, byte_size, count, counted, duration, short_count


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (300 << 30, "300 GiB"), (5 << 50, "5120 TiB")],
)
def test_sizes(number, text):
    assert byte_size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (float("nan"), "?"),
        (0.2, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (4500, "1 h 15 min"),
        (3605, "1 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_ages_have_one_unit():
    assert [age(s) for s in (0, 250, 4500, 200_000)] == ["just now", "4 min ago", "1 h ago", "2 d ago"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (9_999, "9,999"), (12_345, "12.3 k"), (1_234_567, "1.23 M"), (54e9, "54 G"), (999_999, "1 M")],
)
def test_short_counts(number, text):
    assert short_count(number) == text


def test_counts():
    assert count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1 epoch"), (1.0, "1 epoch"), (0, "0 epochs"), (0.25, "0.25 epochs"), (1280.0, "1,280 epochs"), (1.004, "1 epoch")],
)
def test_a_number_with_its_noun(number, text):
    assert counted(number, "epoch") == text
    assert counted(2, "process", "processes") == "2 processes"
