"""What a check looks for: each kind with its name, whether it is an error, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from medsft.core.data.check.patterns import IdentifierKind

_IDENTIFIER = "identifier_"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding."""

    name: str
    error: bool
    """Whether `--strict` ends with exit code 3; else it is a remark"""
    means: str
    """Of a row, after "rows": what is said of it"""

    def meaning(self, rows: int) -> str:
        """Return what is said of so many rows: of one, "repeats an earlier row"."""
        verb, _, rest = self.means.partition(" ")
        singular = {"have": "has", "are": "is", "cannot": "cannot"}.get(verb, f"{verb}s")
        return f"{singular} {rest}" if rows == 1 else self.means

    @property
    def identifies(self) -> bool:
        """Whether it is about who a row is about."""
        return self.name.startswith(_IDENTIFIER)


UNUSABLE, EMPTY, REPEATED, NEAR_REPEATED, CONTRADICTING, IN_VAL, IN_AGAINST = (
    Kind("unusable", True, "cannot be read"),
    Kind("empty", True, "have an empty question or answer"),
    Kind("repeated", True, "repeat an earlier row"),
    Kind("near_repeated", False, "are nearly the same as an earlier row"),
    Kind("contradicting", True, "give another answer than a row with the same question"),
    Kind("in_val", True, "overlap with a row of --val"),
    Kind("in_against", True, "overlap with a row of --against"),
)
REFUSING, CUT_OFF, LENGTH, LANGUAGE = (
    Kind("refusing", True, "have an answer that refuses"),
    Kind("cut_off", False, "have an answer that seems cut off"),
    Kind("length", False, "have a question or an answer of unusual length"),
    Kind("language", False, "are in a language that few rows have"),
)
_IDENTIFIERS: dict[IdentifierKind, tuple[bool, str]] = {
    "name": (True, "name a person"),
    "birth_date": (True, "hold a date of birth"),
    "phone": (True, "hold a phone number"),
    "record_number": (True, "hold a record or case number"),
    "social_security": (True, "hold a social security number"),
    "mail": (True, "hold a mail address"),
    "address": (True, "hold a street address"),
    "zip_code": (True, "hold a postal code"),
    "ip_address": (True, "hold an IP address"),
    "date": (False, "hold a date more exact than a year"),
    "url": (False, "hold a URL"),
    "age": (False, "name an age over 89"),
}
IDENTIFIERS = {name: Kind(f"{_IDENTIFIER}{name}", *_IDENTIFIERS[name]) for name in get_args(IdentifierKind)}
KINDS = (
    *(UNUSABLE, EMPTY, REPEATED, NEAR_REPEATED, CONTRADICTING, IN_VAL, IN_AGAINST, REFUSING, CUT_OFF, LENGTH, LANGUAGE),
    *sorted(IDENTIFIERS.values(), key=lambda kind: not kind.error),
)
"""In the order in which they are shown."""
BITS = {kind: bit for bit, kind in enumerate((UNUSABLE, EMPTY, REFUSING, CUT_OFF, *IDENTIFIERS.values()))}
"""Of the kinds that show in a row alone: which bit of its flags says so."""
LEFT_OUT = (UNUSABLE, EMPTY, REPEATED, NEAR_REPEATED, CONTRADICTING, IN_VAL, IN_AGAINST)
"""What clean rows are without."""
AT_START = (EMPTY, CONTRADICTING, REFUSING, CUT_OFF, *(kind for kind in IDENTIFIERS.values() if kind.error))
"""What is looked for before a run starts: it shows in a row alone, or among some rows, and tokenizing does not say it."""
