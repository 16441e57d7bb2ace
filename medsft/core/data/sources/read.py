"""Rows as conversations, out of whole files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsft.core.config.row_options import FormatName, check_row_options
from medsft.core.data.sources.bad_rows import BadRows
from medsft.core.data.sources.base import BadRow, all_rows
from medsft.core.data.sources.columns import KeyProposal, proposal, string_names
from medsft.core.data.sources.conversation import Conversation
from medsft.core.data.sources.open import open_rows
from medsft.core.data.sources.recognize import recognize
from medsft.core.data.sources.row_format import RowFormats, format_of
from medsft.core.data.sources.row_looks import RowOptions
from medsft.errors import ConfigError

_PROPOSAL_ROWS = 50


def read_conversations(files: Iterable[Path], rows: RowFormats, *, skip_bad: bool = False) -> Iterator[Conversation]:
    """Stream the conversations of several files in order. Raises DataError at the first bad row, or leaves bad rows out."""
    for file, path in enumerate(files):
        source, row_format = open_rows(path), format_of(rows, file)
        for row in all_rows(source):
            try:
                yield row_format.conversation(row.fields())
            except BadRow as bad:
                if not skip_bad:
                    found = BadRows()
                    found.add(source.place(row.number), bad)
                    raise found.error() from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of some files as conversations. Iterating reads the files, each time anew and in constant memory."""

    files: tuple[Path, ...]
    rows: RowFormats
    """How they are read: one format, or one for each file"""
    reason: str
    """Why, as a clause for people; empty where everything was given"""
    skip_bad: bool = False

    def __iter__(self) -> Iterator[Conversation]:
        """Yield the conversation of each row. Raises DataError at the first row that cannot be used, unless `skip_bad`."""
        return read_conversations(self.files, self.rows, skip_bad=self.skip_bad)


def rows_of_files(
    files: str | Path | Iterable[str | Path],
    *,
    format: FormatName | Literal["auto"] = "auto",
    question_key: str | None = None,
    answer_key: str | None = None,
    system_key: str | None = None,
    messages_key: str | None = None,
    options_key: str | None = None,
    reasoning_key: str | None = None,
    text_key: str | None = None,
    role_map: str | None = None,
    first_option: Literal[0, 1] | None = None,
    skip_bad: bool = False,
) -> Rows:
    """Open files of rows (JSONL and the other kinds that `--data` takes) to read their conversations.

    The options are those of `medsft tokenize`, without defaults: a key that is not given is looked for under its usual names,
    and `format="auto"` tells the format of each file from its first rows. `skip_bad` leaves out rows that cannot be used.

    Raises ConfigError for options that contradict each other, DataError for files that cannot be read and for rows of a file
    that are not all of one format.
    """
    paths = tuple(map(Path, [files] if isinstance(files, (str, Path)) else files))
    given = {
        "question_key": question_key,
        "answer_key": answer_key,
        "system_key": system_key,
        "messages_key": messages_key,
        "options_key": options_key,
        "reasoning_key": reasoning_key,
        "text_key": text_key,
        "role_map": role_map,
        "first_option": first_option,
    }
    problems = check_row_options(format, given, files=len(paths))
    if problems:
        raise ConfigError(problems)
    found = recognize(paths, RowOptions.of(format, given))
    return Rows(files=paths, rows=found.rows, reason=found.reason, skip_bad=skip_bad)


def propose_keys(path: Path) -> KeyProposal:
    """Look at the first rows of a file and propose its keys by their usual names; None where there is no such name.

    Raises DataError when the file cannot be read.
    """
    common: list[str] | None = None
    rows = 0
    for row in all_rows(open_rows(path)):
        try:
            strings = string_names(row.fields())
        except BadRow:
            continue
        common = strings if common is None else [key for key in common if key in strings]
        rows += 1
        if rows == _PROPOSAL_ROWS:
            break
    return proposal(common or ())
