"""What connects the app to the server: Textual's driver for browsers."""

from __future__ import annotations

from contextlib import suppress

from textual.drivers.web_driver import WebDriver
from textual.messages import ExitApp


class BrowserDriver(WebDriver):
    """Ends the app with its input too: a server that was killed could not say goodbye, and the app would stay for ever."""

    def run_input_thread(self) -> None:
        """Pass keys to the app until there are no more."""
        super().run_input_thread()
        with suppress(RuntimeError):  # the app has ended already
            self._app.post_message(ExitApp())
