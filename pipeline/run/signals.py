"""Ending a command by SIGTERM, which schedulers send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.run.context import StoppedError


@contextmanager
def stopped_by_sigterm(message: str) -> Iterator[None]:
    """While the block runs, the first SIGTERM interrupts it as Ctrl-C does, and then raises `StoppedError`.

    To be used within a connection to Ray, whose own handler prints a stack of C++ and ends the process at once. Outside
    the main thread, which alone may set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, is_asked = signal.getsignal(signal.SIGTERM), False

    def stop(*_: object) -> None:
        nonlocal is_asked
        is_asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the block is ending already
        raise KeyboardInterrupt  # any other error would wait for the end of the call of Ray that it is raised in

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if is_asked:
            raise StoppedError(message) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
