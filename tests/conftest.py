"""What all tests share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Signals as a terminal delivers them.

    A shell starts what it runs in the background with SIGINT ignored, `nohup` with SIGHUP, and
    the processes that tests start would inherit that: no signal of a test would end them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
