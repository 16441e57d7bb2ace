"""Special strings in text: which ones control a model, and which ones a person merely wrote.

`pieces` cuts a segment into control tokens and plain text. Text of people stays plain unless `control` is asked for,
which is what the original does and what lets a row end its own message early.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from medsft.core.data.tokenizers.template import Segment

SpecialInText = Literal["escape", "control", "error"]
"""What a special string in a row becomes: plain text, a control token, or a bad row."""


@lru_cache(maxsize=8)
def pattern_of(special_strings: tuple[str, ...]) -> re.Pattern[str]:
    """Finds the leftmost special string; where two begin at one place, the one registered first (not the longest)."""
    return re.compile("|".join(map(re.escape, special_strings)) or r"(?!)")


def pieces(segment: Segment, pattern: re.Pattern[str], *, control: bool) -> Iterator[tuple[str, bool]]:
    """Cut a segment into (text, is a control token). Plain text that stands together comes as one piece."""
    text, begin = segment.text, 0
    end = 0  # of the last control token
    for first, last in (*(() if control else segment.literal), (len(text), len(text))):
        for match in pattern.finditer(text, begin, first):
            if end < match.start():
                yield text[end : match.start()], False
            yield match.group(), True
            end = match.end()
        begin = last
    if end < len(text):
        yield text[end:], False


def count_in_text(segment: Segment, pattern: re.Pattern[str]) -> int:
    """How many special strings people wrote in a segment."""
    count = 0
    for first, last in segment.literal:  # a loop, for this is asked of every segment there is
        count += len(pattern.findall(segment.text, first, last))
    return count
