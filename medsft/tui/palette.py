"""The command palette."""

from __future__ import annotations

from contextlib import suppress

from textual.command import CommandPalette


class Palette(CommandPalette):
    """Textual's, but a page key that comes before the list was laid out does nothing: in Textual 8.2 it raises `KeyError`."""

    def _action_command_list(self, action: str) -> None:
        with suppress(KeyError):
            super()._action_command_list(action)
