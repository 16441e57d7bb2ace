from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Give signals their usual meaning: under nohup, or in the background of a script, tests would pass on that they are ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
