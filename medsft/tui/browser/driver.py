"""What connects the app to the server: Textual's driver for browsers."""

from __future__ import annotations

from contextlib import suppress

from textual.drivers.web_driver import WebDriver
from textual.messages import ExitApp

from medsft.tui.browser import is_screen


class BrowserDriver(WebDriver):
    """Takes no size that is none, and ends the app with its input: a server that was killed could not say goodbye."""

    def on_meta(self, packet_type: str, payload: dict[str, object]) -> None:
        """Do what the page asks for beside keys."""
        if packet_type != "resize" or is_screen(payload.get("width"), payload.get("height")):
            super().on_meta(packet_type, payload)

    def run_input_thread(self) -> None:
        """Pass keys to the app until there are no more."""
        super().run_input_thread()
        with suppress(RuntimeError):  # the app has ended already
            self._app.post_message(ExitApp())
