"""What a person has typed into the wizard so far, kept in the user's state folder so that leaving loses nothing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from medsft.core.disk import writing
from medsft.core.files import parents_of, write_atomically


@dataclass(frozen=True, slots=True)
class Draft:
    """Texts by the name of their `RunConfig` field, as typed: they may not be valid yet. Names no record's content."""

    texts: dict[str, str] = field(default_factory=dict)
    page: int = 0


def draft_path() -> Path:
    """Return where the draft is kept: XDG_STATE_HOME, else ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "medsft" / "draft.json"


def load_draft(path: Path) -> Draft:
    """Return the draft, an empty one when there is none or it cannot be read."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Draft({str(name): str(text) for name, text in raw["texts"].items()}, int(raw["page"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Draft()


def save_draft(path: Path, draft: Draft) -> None:
    """Write the draft, readable by its owner only: paths may say more than others should know. Raises `ConfigError`."""
    with writing(path, ""), parents_of(path, mode=0o700):
        write_atomically(path, json.dumps({"texts": draft.texts, "page": draft.page}, indent=1) + "\n")
        path.chmod(0o600)
