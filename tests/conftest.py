from __future__ import annotations

import ctypes
import platform
import signal

from hypothesis import settings

_M_PERTURB = -6  # glibc, malloc.h


def pytest_configure() -> None:
    """Give signals their usual meaning, which nohup and the background of a script take away from all that tests start.

    And let no test fail for the time that an example takes on a busy machine.
    """
    settings.register_profile("any-machine", deadline=None)
    settings.load_profile("any-machine")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if platform.libc_ver()[0] == "glibc":
        # New memory is full of 0xff, which is NaN in every number format: a kernel that reads what nobody wrote fails here, and
        # not only where memory happens to hold such bytes. (glibc fills with the lowest byte of the complement.)
        ctypes.CDLL(None).mallopt(_M_PERTURB, 0x100)
