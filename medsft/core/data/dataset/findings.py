"""What is worth knowing of rows that can all be used: text that is not read, repeated rows, missing system messages.

It is counted while the rows are checked, by the processes that have them parsed anyway, and kept in the manifest of a set. Of
each row a hash of eight bytes stays, so that repeats are found, and later those between two sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsft.core.data.dataset.answers import find_answers
from medsft.core.data.dataset.outlines import Outlines
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import Keys, find, names, shown, unused_text
from medsft.core.data.sources.conversation import Conversation, Message, parts_up_to_answers
from medsft.core.data.sources.grouping import short_hash
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.row_format import RowFormat, RowFormats, format_of
from medsft.core.data.tokenizers.template import Role
from medsft.core.units import count
from medsft.errors import DataError

Hashes = npt.NDArray[np.uint64]
BYTES_PER_TOKEN = 4.0
"""Of English text, for estimates before anything is tokenized."""
SURVEYED_ROWS = 1000
"""Of each file, for a look before anything is tokenized."""
_MUCH_UNKNOWN = 1e-3
"""Share of the tokens. A stray sign in a text is less; a tokenizer that spells bytes has none."""
_MOST_COLUMNS = 50
_SHOWN_COLUMNS = 8


@dataclass(slots=True)
class Tally:
    """Counts over some rows, of files of any formats."""

    rows: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    """Key -> rows with text under it that is not read"""
    without_system: int = 0
    """Rows without a system message that are read with a key of one"""
    having: set[tuple[str, str]] = field(default_factory=set)
    """(`system` or `reasoning`, the key of it) that some row has"""
    lacking: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """The same of those that some row has not -> the keys of the first such row"""
    digests: bytearray = field(default_factory=bytearray)
    group_digests: bytearray = field(default_factory=bytearray)
    """Of the values under the group's key; empty without one"""

    def add(self, row: Mapping[str, object], conversation: Conversation, row_format: RowFormat, *, documents: int = 1) -> None:
        """Count one row that can be used, with how it is read; so many documents are made of it."""
        keys = row_format.keys
        self.rows += 1
        self.digests += digest(conversation) * documents
        if keys.group is not None:
            self.group_digests += row_format.group(row) * documents
        alone = keys.messages in row if len(row) == 1 else len(row) == 2 and keys.question in row and keys.answer in row
        if not alone:  # there is more than what is read
            self._count_unused(row, keys)
        if keys.system is not None:
            self.without_system += not any(message.role == "system" for message in conversation)
            self._count_key("system", keys.system, row)
        if keys.reasoning:
            self._count_key("reasoning", keys.reasoning, row)

    def _count_key(self, name: str, key: str, row: Mapping[str, object]) -> None:
        if find(row, key)[0]:
            self.having.add((name, key))
        elif (name, key) not in self.lacking:
            self.lacking[name, key] = tuple(names(row))

    def _count_unused(self, row: Mapping[str, object], keys: Keys) -> None:
        for key in unused_text(row, _used(keys)):
            if key in self.unused or len(self.unused) < _MOST_COLUMNS:
                self.unused[key] += 1

    def merge(self, later: Tally) -> None:
        """Add the counts of later rows."""
        self.rows += later.rows
        self.unused += later.unused
        self.without_system += later.without_system
        self.having |= later.having
        self.lacking = later.lacking | self.lacking
        self.digests += later.digests
        self.group_digests += later.group_digests

    def hashes(self) -> Hashes:
        """A number for each document, in their order; equal for documents of rows with the same texts."""
        return np.frombuffer(bytes(self.digests), "<u8")

    def group_hashes(self) -> Hashes | None:
        """A number for the group of each document, in their order; None where rows were read without a key for it."""
        return np.frombuffer(bytes(self.group_digests), "<u8") if self.group_digests else None

    def findings(self) -> Findings:
        """What they amount to."""
        hashes = self.hashes()
        return Findings(
            rows=self.rows,
            repeated=self.rows - len(np.unique(hashes)),
            unused_text=dict(self.unused.most_common()),
            without_system=self.without_system,
        )

    def refuse_unknown_keys(self) -> None:
        """Raise DataError when no row at all has the key of the system message, or of the reasoning: that is a slip."""
        for (name, key), keys in self.lacking.items():
            if (name, key) not in self.having:
                raise DataError(
                    f"--{name}_key: no row has the key '{key}'. The keys of the first row: {shown(keys)}",
                    hint=f"correct the key, or leave --{name}_key away",
                )


@lru_cache(maxsize=64)
def _used(keys: Keys) -> tuple[str, ...]:
    return keys.used


def digest(conversation: Conversation) -> bytes:
    """A hash of what the messages say. That of one question and its answer must stay as it is: it lies beside sets on disk."""
    roles = [message.role for message in conversation]
    if roles in (["user", "assistant"], ["system", "user", "assistant"]) and conversation[-1][2:] == ("", True):
        *before, question, answer = conversation
        system = before[0].content if before else ""
        text = f"{len(question.content)} {len(answer.content)} {question.content}{answer.content}{system}"
    else:
        heads = (f"{message.role} {len(message.content)}{_extras(message)}" for message in conversation)
        text = " ".join((*heads, *(message.reasoning + message.content for message in conversation)))
    return short_hash(text.encode("utf-8"))


def _extras(message: Message) -> str:
    reasoning = f" {len(message.reasoning)}" if message.reasoning else ""
    return reasoning if message.trained else f"{reasoning} untrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found in rows that can all be used."""

    rows: int
    repeated: int
    """Rows whose texts an earlier row has"""
    unused_text: Mapping[str, int] = field(default_factory=dict)
    """Key -> rows with text under it that is not read"""
    without_system: int = 0
    """Rows without a system message, when a key of one was given"""

    def sentences(self, flag: str, *, first_rows: bool = False) -> list[str]:
        """Each in a sentence for people; `flag` names the rows, `first_rows` says that only some were looked at."""
        of = f"the first {count(self.rows)}" if first_rows else count(self.rows)
        lines = []
        if self.unused_text:
            named = [
                f"{shown([key])} (in {count(rows)} of {of} rows)"
                for key, rows in list(self.unused_text.items())[:_SHOWN_COLUMNS]
            ]
            more = len(self.unused_text) - len(named)
            listed = ", ".join(named) + (f" and {more} more" if more else "")
            lines.append(f"{flag}: the text under these keys is not used: {listed}.")
        if self.repeated:
            lines.append(f"{flag}: {count(self.repeated)} of {of} rows repeat an earlier one.")
        if self.without_system:
            lines.append(f"{flag}: {count(self.without_system)} of {of} rows have no system message.")
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first rows of some files are like."""

    tally: Tally
    """Of the rows that can be used"""
    bad: BadRows
    complete: bool
    """Whether that is all there are"""
    outlines: Outlines
    """Of the rows that can be used, by the bytes of their messages: an estimate"""


def survey(files: Sequence[Path], rows: RowFormats, *, split: bool = False) -> Survey:
    """Look at the first `SURVEYED_ROWS` rows of each file as tokenizing would. Raises DataError for files that it refuses.

    With `split` each answer of a row gives a document.
    """
    tally, bad, complete = Tally(), BadRows(), True
    conversations: list[Conversation] = []
    for file, path in enumerate(files):
        source, row_format = open_rows(path), format_of(rows, file)
        for index, row in enumerate(all_rows(source)):
            if index == SURVEYED_ROWS:
                complete = False
                break
            try:
                fields = row.fields()
                conversation = row_format.conversation(fields)
                parts = parts_up_to_answers(conversation) if split else (conversation,)
                tally.add(fields, conversation, row_format, documents=len(parts))
                conversations += parts
            except BadRow as error:
                bad.add(source.place(row.number), error)
    return Survey(tally=tally, bad=bad, complete=complete, outlines=_estimated_outlines(conversations))


def _estimated_outlines(conversations: Sequence[Conversation]) -> Outlines:
    messages = [message for conversation in conversations for message in conversation]
    size = np.fromiter((len(message.content.encode()) + len(message.reasoning.encode()) for message in messages), np.int64)
    tokens = np.maximum(1, (size / BYTES_PER_TOKEN).astype(np.int64))
    roles = np.fromiter((_role(message) for message in messages), np.uint16)
    document = np.repeat(np.arange(len(conversations)), [len(conversation) for conversation in conversations])
    lengths = np.bincount(document, weights=tokens, minlength=len(conversations)).astype(np.int64)
    answers = find_answers(np.repeat(roles, tokens), lengths, stops=None)
    texts = np.zeros(len(conversations), bool)
    texts[document[roles == Role.TEXT]] = True
    return Outlines(lengths=lengths, answers=answers, texts=texts)


def _role(message: Message) -> Role:
    if message.role == "text":
        return Role.TEXT
    return Role.ANSWER if message.role == "assistant" and message.trained else Role.QUESTION


def given_twice(files: Sequence[str], contents: Sequence[object], flag: str) -> list[str]:
    """A sentence for each file whose content an earlier one has; `contents` tells contents apart."""
    first: dict[object, str] = {}
    lines = []
    for path, content in zip(files, contents, strict=True):
        if content in first:
            other = "is given twice" if first[content] == path else f"is the same as {first[content]}"
            lines.append(f"{flag}: {path} {other}.")
        first.setdefault(content, path)
    return lines


def unknown_sentence(unknown: int, tokens: int, flag: str) -> list[str]:
    """What it means that so many of the tokens stand for text which the vocabulary cannot spell; nothing for a few."""
    if unknown < _MUCH_UNKNOWN * tokens or not unknown:
        return []
    share = f"{flag}: {100 * unknown / tokens:.2g} % of the tokens ({count(unknown)}) are the tokenizer's unknown token"
    remedy = "Take the base model's own tokenizer, or one of this language."
    return [f"{share}: the model does not see the words or characters behind them. {remedy}"]


def overlap(train: Hashes | None, val: Hashes | None) -> int:
    """How many rows of `val` are in `train` too; 0 where hashes are missing (a set of before, or of another program)."""
    if train is None or val is None or not len(train) or not len(val):
        return 0
    wanted, times = np.unique(val, return_counts=True)
    places = np.minimum(np.searchsorted(wanted, train), len(wanted) - 1)
    found = np.zeros(len(wanted), bool)
    found[places[wanted[places] == train]] = True
    return int(times[found].sum())


def overlap_sentence(repeats: int, rows: int) -> list[str]:
    """What an overlap means, nothing for none."""
    if not repeats:
        return []
    return [f"--val: {count(repeats)} of {count(rows)} rows are in --data too: the validation loss will look too good."]
