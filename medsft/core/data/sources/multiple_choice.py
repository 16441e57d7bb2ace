"""The row format of multiple-choice questions: a question, its options, and which of them is right.

    {"question": "...", "options": {"A": "Vitamin A", "B": "Vitamin C"}, "answer_idx": "B"}     MedQA
    {"question": "...", "opa": "...", "opb": "...", "opc": "...", "opd": "...", "cop": 2}       MedMCQA
    {"question": "...", "choices": ["Vitamin A", "Vitamin C"], "answer": 1}                     MMLU
    {"question": "...", "choices": {"text": [...], "label": ["A", "B"]}, "answerKey": "B"}      ARC

The right option may be told by its label, its number or its text. Where two of them could be meant and are not the same option,
the row is refused: a set whose answers are off by one trains as well as any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medsft.core.data.sources.base import BadRow, EmptyRow
from medsft.core.data.sources.columns import Keys, names
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.question_answer import conversation_of
from medsft.core.data.sources.values import fields_of, found, kind_of, refuse_surrogates, text, under

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(r"\(?\s*(\w)\s*[).:]?", re.ASCII)
_LETTER_AND_TEXT = re.compile(r"\(?\s*(\w)\s*[).:]\s+(.*\S)\s*", re.ASCII | re.DOTALL)
_NUMBER = re.compile(r"-?\d{1,4}(?:\.0)?", re.ASCII)
_NO_NUMBER = "the answer under '{}' is a number, and nothing says whether options count from 0 or from 1 (--first_option)"


class Option(NamedTuple):
    """One option of a question."""

    label: str
    """A letter or a word of the row; empty where the row has none"""
    text: str
    """Without spaces around it; empty for one that is not there, such as the fifth of four"""
    written: str = ""
    """The same as the row has it"""


class Choice(NamedTuple):
    """A question with its options, of which one is right."""

    question: str
    options: Sequence[Option]
    letters: Sequence[str]
    """One for each option"""
    right: int
    """The place of the right option"""


def multiple_choice(row: Mapping[str, object], keys: Keys) -> Conversation:
    """The question with its lettered options, and the right one as the answer, such as ``B. Vitamin C``. Raises BadRow."""
    question, options, letters, right = choice_of(row, keys)
    asked = asked_with_options(question, letters, [option.text for option in options])
    return conversation_of(row, keys, asked, f"{letters[right]}. {options[right].text}")


def choice_of(row: Mapping[str, object], keys: Keys) -> Choice:
    """Return what a row asks, with the option that its answer means. Raises BadRow."""
    question = question_of(row, keys.question)
    options = options_of(row, keys.options)
    letters = letters_of(options)
    return Choice(question, options, letters, _right_option(under(row, keys.answer), options, letters, keys))


def question_of(row: Mapping[str, object], key: str) -> str:
    """Return the question under a key. Raises BadRow where it is empty."""
    question = text(row, key)
    if not question.strip():
        raise EmptyRow(f"empty question under '{key}'")
    return question


def asked_with_options(question: str, letters: Sequence[str], options: Sequence[str]) -> str:
    """Return the text that asks a question with its options, each on a line behind its letter; empty ones are left out."""
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=True) if option]
    return "\n".join((f"{question}\n", *lines))


def options_of(row: Mapping[str, object], keys: Sequence[str]) -> list[Option]:
    """Return the options of a row: under one key for each, or all under one, as a list or an object. Raises BadRow."""
    if len(keys) > 1:
        values = [found(row, key) for key in keys]
        if not any(there for there, _ in values):
            raise BadRow(f"no key '{keys[0]}'", names(row))
        options = [_option("", value, key) for (_, value), key in zip(values, keys, strict=True)]
    else:
        options = _options_under(under(row, keys[0]), keys[0], row)
    if sum(bool(option.text) for option in options) < 2:
        raise BadRow(f"fewer than two options under '{keys[0]}'")
    if len(options) > len(_LETTERS):
        raise BadRow(f"more than {len(_LETTERS)} options under '{keys[0]}'")
    return options


def _options_under(value: object, key: str, row: Mapping[str, object]) -> list[Option]:
    if isinstance(value, list):
        return [_option_in_list(item, key) for item in value]
    fields = fields_of(value)
    if fields is None:
        raise BadRow(f"'{key}' is {kind_of(value)}, not a list or an object of options", names(row))
    texts, labels = fields.get("text"), fields.get("label")
    if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
        return [_option(_label(label, key), item, key) for label, item in zip(labels, texts, strict=True)]
    return [_option(label.strip(), item, key) for label, item in fields.items()]


def _option_in_list(item: object, key: str) -> Option:
    fields = fields_of(item)
    if fields is None:
        return _option("", item, key)
    for label, content in (("key", "value"), ("label", "text"), ("aid", "atext")):
        if label in fields and content in fields:
            return _option(_label(fields[label], key), fields[content], key)
    raise BadRow(f"an option under '{key}' is an object without `key` and `value` or `label` and `text`")


def _label(value: object, key: str) -> str:
    number = whole(value)
    if number is not None:
        return str(number)
    if not isinstance(value, str):
        raise BadRow(f"the label of an option under '{key}' is {kind_of(value)}, not a string")
    return value.strip()


def _option(label: str, value: object, key: str) -> Option:
    written = _option_text(value, key)
    return Option(label, written.strip(), written)


def _option_text(value: object, key: str) -> str:
    """Return an option as it is written, empty for one that is null. Numbers are options, too."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(int(value)) if float(value).is_integer() else str(value)
    if not isinstance(value, str):
        raise BadRow(f"an option under '{key}' is {kind_of(value)}, not a string")
    refuse_surrogates(value, f"under '{key}'")
    return value


def letters_of(options: Sequence[Option]) -> list[str]:
    """Return the letter of each option: its own label where all have single letters, else by its place."""
    own = [option.label.upper() for option in options]
    usable = len(set(own)) == len(own) and all(len(label) == 1 and label in _LETTERS for label in own)
    return own if usable else list(_LETTERS[: len(options)])


def whole(value: object) -> int | None:
    """Return a number of a row as a whole one (a careful parser makes floats of all), None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if float(value).is_integer() else None


def _right_option(value: object, options: Sequence[Option], letters: Sequence[str], keys: Keys) -> int:
    """Return the place of the right option. Raises BadRow when it is none of them, or not clear which."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise EmptyRow(f"no answer under '{keys.answer}'")
    meant = _by_label_or_text(value, options, letters, keys)
    number = number_of(value)
    if number is not None and not _by_label(str(number), options, letters):
        places = _places(number, options)
        if keys.first_option is not None:
            meant |= {place for first, place in places.items() if first == keys.first_option}
        elif not meant.issuperset(places.values()) and not (meant and isinstance(value, str)):
            raise BadRow(_NO_NUMBER.format(keys.answer))
    if len(meant) > 1:
        raise BadRow(f"the answer under '{keys.answer}' can mean several options")
    if not meant:
        raise BadRow(f"the answer under '{keys.answer}' is none of the options")
    return next(iter(meant))


def _by_label_or_text(value: object, options: Sequence[Option], letters: Sequence[str], keys: Keys) -> set[int]:
    """Return the places of options that have the answer as their label or their text."""
    if (number := whole(value)) is not None:
        said = str(number)
    elif isinstance(value, str):
        said = value.strip()
    else:
        raise BadRow(f"'{keys.answer}' is {kind_of(value)}, not the label, the number or the text of an option")
    meant = _by_label(said, options, letters) | {place for place, option in enumerate(options) if option.text == said}
    both = _LETTER_AND_TEXT.fullmatch(said)
    if both is not None:
        lettered = _by_label(both[1], options, letters)
        meant |= {place for place in lettered if options[place].text == both[2]}
    return meant


def _by_label(said: str, options: Sequence[Option], letters: Sequence[str]) -> set[int]:
    """Return the place of the option with a label, also in brackets or with a dot; labels of the row come before letters."""
    lettered = _LETTER.fullmatch(said)
    wanted = {said.upper()} | ({lettered[1].upper()} if lettered is not None else set())
    own = {place for place, option in enumerate(options) if option.text and option.label.upper() in wanted - {""}}
    return own or {place for place, letter in enumerate(letters) if options[place].text and letter in wanted}


def number_of(value: object) -> int | None:
    """Return an answer that is a number, written as one or as text."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(float(value))
    return whole(value)


def _places(number: int, options: Sequence[Option]) -> dict[int, int]:
    """Return the place of the option that a number means, by the number of the first option: 0, 1, or both."""
    places = {first: number - first for first in (0, 1)}
    return {first: place for first, place in places.items() if 0 <= place < len(options) and options[place].text}


def possible_first_options(row: Mapping[str, object], keys: Keys) -> set[int] | None:
    """Return from which numbers the options of a row may count: 0, 1 or both. None when its answer is no number.

    Raises BadRow when the row cannot be used.
    """
    options = options_of(row, keys.options)
    value = under(row, keys.answer)
    number = number_of(value)
    if number is None or _by_label_or_text(value, options, letters_of(options), keys):
        return None
    return set(_places(number, options))
