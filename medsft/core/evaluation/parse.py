"""What a written answer says: strictly, so that an answer which says nothing of the options counts as invalid.

An answer chooses an option when it is the option's label or text and nothing else, begins with the label as a list does
(``B.``, ``(B)``, ``B:``, or ``Yes,``), or says ``answer is B``. All of these that it does must mean the same option: where the
text of one option is the label of another, an answer that is just this means neither.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_SPACES = re.compile(r"\s+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:[.:)]|\s*$|[ \t]*\n)")
_LETTER_SAID = re.compile(r"(?i:\banswer\b(?:\s+is\b)?\s*:?\s*)[*(\[]*([A-Z])(?![A-Za-z'])")
_WORD_FIRST = re.compile(r"(\w+)(?:[.,;:!]|\s*$|[ \t]*\n)")
_WORD_SAID = re.compile(r"\banswer\b(?:\s+is\b\s*:?|\s*:)\s*[*\"'(\[]*(\w+)", re.IGNORECASE)


def chosen_option(answer: str, labels: Sequence[str], options: Sequence[str]) -> int | None:
    """Return the place of the option that an answer chooses; None where it chooses none, or not one alone."""
    said = answer.strip()
    lettered = all(len(label) == 1 for label in labels)
    plain = [_plain(option) for option in options]
    whole = _plain(said)
    if plain.count(whole) == 1:
        place, folded = plain.index(whole), [label.casefold() for label in labels]
        return place if whole not in folded or folded.index(whole) == place else None
    if lettered:
        named = [found[1] for found in [_LETTER_FIRST.match(said)] if found] + _LETTER_SAID.findall(said)
        known = list(labels)
    else:
        named = [found[1].lower() for found in [_WORD_FIRST.match(said)] if found]
        known = [label.lower() for label in labels]
        named = [word for word in named if word in known] + [word.lower() for word in _WORD_SAID.findall(said)]
    meant = set(named)
    return known.index(next(iter(meant))) if len(meant) == 1 and meant <= set(known) else None


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip().rstrip(".").casefold()


def normalized(text: str) -> str:
    """Return an answer in words as SQuAD compares it: in lower case, without punctuation, articles and more than one space."""
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return _SPACES.sub(" ", _ARTICLES.sub(" ", kept)).strip()


def token_f1(answer: str, right: str) -> float:
    """Return the F1 of the words that two answers share, from 0 to 1, as SQuAD counts it."""
    given, wanted = normalized(answer).split(), normalized(right).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2 * same / (len(given) + len(wanted))
