"""Peak memory of this process and its descendants."""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from pipeline.run.repeating import repeating

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
    monitor = MemoryMonitor()
    try:
        with repeating(monitor.measure, INTERVAL_SECONDS, "reelflow-memory"):
            yield monitor
    finally:
        monitor.measure()
