from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Give signals their usual meaning, which nohup and the background of a script take away from all that tests start."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
