"""Paths by typing with completion, or from a tree of files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from rich.text import Text, TextType
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import DirectoryTree, Static

from medsft.core.config.data_files import data_file
from medsft.core.data.sources.endings import ROW_FILE_ENDINGS
from medsft.core.printable import one_line
from medsft.errors import ConfigError
from medsft.tui.widgets.text import put
from medsft.tui.wizard.form import split_paths


class PathSuggester(Suggester):
    """Completes the last path of a text to the first file or folder that begins with it."""

    def __init__(self, endings: tuple[str, ...] = ()) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._endings = endings

    async def get_suggestion(self, value: str) -> str | None:
        """Return the text with its last path completed, or None."""
        last = value.rpartition(" ")[2]
        completed = complete(last, self._endings)
        return value[: len(value) - len(last)] + completed if completed and completed != last else None


def complete(text: str, endings: tuple[str, ...] = ()) -> str | None:
    """Return the path completed to the first match in the order of names; folders end in a slash."""
    if not text:
        return None
    folder, _, start = text.rpartition("/")
    try:
        entries = sorted(Path(f"{folder}/" if folder or text.startswith("/") else ".").expanduser().iterdir())
    except OSError:
        return None
    for entry in entries:
        is_folder = entry.is_dir()
        wanted = entry.name.startswith(start) and (start or not entry.name.startswith("."))
        plain = " " not in entry.name and one_line(entry.name) == entry.name
        if wanted and plain and (is_folder or entry.name.endswith(endings or ("",))):
            return text[: len(text) - len(start)] + entry.name + ("/" if is_folder else "")
    return None


class DataTree(DirectoryTree):
    """Folders, and the files that end as wanted."""

    def __init__(self, path: Path, endings: tuple[str, ...]) -> None:
        super().__init__(path)
        self._endings = endings

    def process_label(self, label: TextType) -> Text:
        """Return a name as the tree shows it."""
        return Text(one_line(str(label)))

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Leave out hidden entries and other files."""
        return [p for p in paths if not p.name.startswith(".") and (p.is_dir() or p.name.endswith(self._endings))]


class FilePicker(ModalScreen[str | None]):
    """Marks files in a tree. Returns their paths as one text, None when closed without."""

    BINDINGS = [
        Binding("u", "up", "Folder above"),
        Binding("d", "done", "Done"),
        Binding("escape,q", "dismiss(None)", "Close"),
    ]

    def __init__(self, start: Path, chosen: Iterable[str], endings: tuple[str, ...] = ROW_FILE_ENDINGS) -> None:
        super().__init__()
        self._start = start
        self._chosen = [Path(path) for path in chosen]
        self._endings = endings

    @classmethod
    def of(cls, text: str) -> FilePicker:
        """Return one for the paths of a text, which opens where the first of them lies."""
        try:
            chosen = split_paths(text, "--data")
        except ConfigError:
            chosen = []
        start = data_file(Path(chosen[0]).expanduser()).path.parent if chosen else Path()
        return cls(start if start.is_dir() else Path(), chosen)

    def compose(self) -> ComposeResult:
        """Lay out the tree and what is marked."""
        with Vertical(id="picker") as frame:
            frame.border_title = "Files of rows"
            frame.border_subtitle = "enter marks · d done · u folder above · esc closes"
            yield DataTree(self._start.resolve(), self._endings)
            yield Static(id="marked")

    def on_mount(self) -> None:
        """Show what is marked."""
        self._show()

    @on(DirectoryTree.FileSelected)
    def mark(self, event: DirectoryTree.FileSelected) -> None:
        """Mark or unmark a file."""
        marked, path = self.marks(event.path), event.path.resolve()
        if marked is not None:
            self._chosen.remove(marked)
        else:
            self._chosen.append(near(path))
        self._show()

    def marks(self, file: Path) -> Path | None:
        """Return what is marked of a file, with its share if it has one; None when it is not marked."""
        known = {data_file(path.expanduser()).path.resolve(): path for path in self._chosen}
        return known.get(file.resolve())

    def _show(self) -> None:
        names = "  ".join(path.name for path in self._chosen) or "none"
        put(self.query_one("#marked", Static), f"{len(self._chosen)} marked: {names}")

    def action_up(self) -> None:
        """Show the folder above."""
        tree = self.query_one(DataTree)
        tree.path = Path(tree.path).parent

    def action_done(self) -> None:
        """Return what is marked."""
        self.dismiss(shlex.join(str(path) for path in self._chosen))


def near(path: Path) -> Path:
    """Return the path relative to the working folder when it is below it: shorter, and as a person would type it."""
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path
