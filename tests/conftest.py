from __future__ import annotations

import signal

from hypothesis import settings


def pytest_configure() -> None:
    """Give signals their usual meaning, which nohup and the background of a script take away from all that tests start.

    And let no test fail for the time that an example takes on a busy machine.
    """
    settings.register_profile("any-machine", deadline=None)
    settings.load_profile("any-machine")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
