"""Ending a command by SIGTERM, which schedulers send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.run.context import StoppedError


@contextmanager
def stopped_by_sigterm(message: str) -> Iterator[None]:
    """While the block runs, the first SIGTERM raises `StoppedError` in it, so that it ends as after an error.

    To be used within a connection to Ray, whose own handler prints a stack of C++. Outside the main thread, which alone
    may set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the block is ending already
        raise StoppedError(message)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
