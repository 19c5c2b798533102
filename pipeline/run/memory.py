"""Peak memory of this process and its descendants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

INTERVAL_SECONDS = 1.0


class MemoryMonitor:
    """The peak of the resident memory of the process tree, in bytes. Shared pages are counted in every process."""

    def __init__(self) -> None:
        self.peak_rss_bytes = 0

    def measure(self) -> None:
        """Measure now."""
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)


@contextmanager
def memory_monitor() -> Iterator[MemoryMonitor]:
    """Measure every second from a thread while the block runs."""
    monitor, stopped = MemoryMonitor(), threading.Event()

    def loop() -> None:
        while not stopped.wait(INTERVAL_SECONDS):
            monitor.measure()

    thread = threading.Thread(target=loop, name="reelflow-memory", daemon=True)
    thread.start()
    try:
        yield monitor
    finally:
        stopped.set()
        thread.join()
        monitor.measure()
