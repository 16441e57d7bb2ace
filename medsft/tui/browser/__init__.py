"""The screens in a browser."""

_MOST_CELLS = 2_000
"""Columns or rows of a screen that somebody can look at: 8K at a tenth of the usual size."""


def is_screen(*sizes: object) -> bool:
    """Tell whether these are the columns and rows of a screen: one of a million cells a side would take all memory."""
    return all(isinstance(size, int) and 0 < size <= _MOST_CELLS for size in sizes)
