"""How much memory this process and everything it started have used."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

INTERVAL_SECONDS = 1.0


class MemoryWatch:
    """The highest sum of resident memory seen over the process tree, in bytes. Shared pages count in each process."""

    def __init__(self) -> None:
        self.peak_rss_bytes = 0

    def measure(self) -> None:
        """Look once."""
        own = psutil.Process()
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_rss_bytes = max(self.peak_rss_bytes, total)


@contextmanager
def memory_watch() -> Iterator[MemoryWatch]:
    """Measure every second from a thread while the block runs."""
    watch, stopped = MemoryWatch(), threading.Event()

    def loop() -> None:
        while not stopped.wait(INTERVAL_SECONDS):
            watch.measure()

    thread = threading.Thread(target=loop, name="reelflow-memory", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        stopped.set()
        thread.join()
        watch.measure()
