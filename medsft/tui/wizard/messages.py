"""What the parts of the wizard tell each other: the state goes down to the pages, messages come up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.message import Message

from medsft.core.config.run_config import RunConfig
from medsft.errors import Problem

if TYPE_CHECKING:
    from medsft.core.models.config import ModelConfig
    from medsft.core.run.rundir import RunDir
    from medsft.tui.wizard.backend import BaseEntry, Outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything the pages show."""

    texts: Mapping[str, str]
    config: RunConfig
    problems: tuple[Problem, ...] = ()
    outlook: Outlook | None = None
    entries: tuple[BaseEntry, ...] = ()
    looking: bool = True
    """The models of medsft.toml are not known yet."""
    model: ModelConfig | None = None
    """Of the chosen base, as last seen."""
    busy: str = ""
    """What is being done just now."""


class Edited(Message):
    """Several fields were set at once; empty texts are defaults."""

    def __init__(self, **texts: str) -> None:
        super().__init__()
        self.texts = texts


class Wanted(Message):
    """A person wants something done: `browse`, `look`, `choose`, `tokenize`, `check`, `save`, `copy`, `start`, ...."""

    def __init__(self, what: str, value: object = None) -> None:
        super().__init__()
        self.what, self.value = what, value


@dataclass
class Looked(Message):
    """The core has looked at a config."""

    outlook: Outlook
    serial: int


@dataclass
class Entries(Message):
    """Base models were looked up: those of medsft.toml, or what a search found."""

    entries: tuple[BaseEntry, ...]
    found: bool
    trouble: str = ""


@dataclass
class Busy(Message):
    """Something slow goes on; an empty text means that it has ended."""

    text: str
    trouble: str = ""

    def can_replace(self, message: Message) -> bool:
        """Progress of the same work is replaced, its end is not."""
        return isinstance(message, Busy) and bool(self.text) and bool(message.text)


@dataclass
class Started(Message):
    """The run has started, or its number of iterations has to be confirmed anew."""

    result: RunDir | int
