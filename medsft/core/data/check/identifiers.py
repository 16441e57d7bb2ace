"""A screen for what identifies a person, after the HIPAA Safe Harbor list (45 CFR 164.514(b)(2)), by patterns.

It finds what is written in the usual forms of English, German, French, Spanish and Italian: names after a title or after
"patient", dates more exact than a year, phone and record numbers, mails, addresses, postal codes, social security numbers,
URLs, IP addresses and ages over 89. It knows no list of names, so a name that stands alone is not found: it is a screen, not a
removal.

A pattern is tried only on texts that have one of its words or, with every digit as 0, one of its strings: to look for those
takes a hundredth of the time.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache

from medsft.core.data.check.patterns import SCREENS, IdentifierKind


@cache
def _to_ascii() -> Mapping[str, str]:
    """Digits of every script, and signs that stand between them, to those of ASCII. (A tenth of a second, so not on import.)"""
    signs = (sign for sign in map(chr, range(0x80, sys.maxunicode + 1)) if sign.isdecimal())
    between = zip("＋－．／：＠‐‑‒–−٫⁄\u00a0\u2009\u202f\u3000’", "+-./:@-----./    '", strict=True)
    return {sign: str(unicodedata.decimal(sign)) for sign in signs} | dict(between)


def plain_digits(text: str) -> str:
    """Return a text of the same length with the digits of every script (Arabic, Devanagari, full width, ...) as 0 to 9."""
    if not text.isascii():
        to_ascii = _to_ascii()
        for sign in to_ascii.keys() & set(text):  # a few; `translate` would look up every character
            text = text.replace(sign, to_ascii[sign])
    return text


_TRIGGER_WORDS = frozenset().union(*(screen.words for screen in SCREENS))
_SHAPE = bytes.maketrans(b"123456789", b"000000000")


def identifiers(text: str, words: Iterable[str]) -> set[IdentifierKind]:
    """Return the kinds that are found in a text. `words` are those of `words_of(text)`, which whoever asks has already."""
    text = plain_digits(text)
    shape = text.lower().encode("utf-8", "replace").translate(_SHAPE)
    found = _TRIGGER_WORDS.intersection(words)
    kinds: set[IdentifierKind] = set()
    for screen in SCREENS:
        if (
            screen.kind not in kinds
            and screen.concerns(shape, found)
            and any(map(screen.confirm, screen.pattern.finditer(text)))
        ):
            kinds.add(screen.kind)
    return kinds
