"""Progress of a stage: a live bar on a terminal, or a line every few seconds where output is not a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.run.logs import shows_progress

LINE_INTERVAL_SECONDS = 10.0


class Bar(Protocol):
    """A display of progress."""

    def update(self, done: int, note: str = "") -> None:
        """Set the number of finished units, and a short text that is shown beside it."""
        ...


class _SilentBar:
    def update(self, done: int, note: str = "") -> None:
        """Show nothing."""


class _TerminalBar:
    def __init__(self, progress: Progress, name: str, total: int, unit: str, start: int) -> None:
        self._progress, self._unit = progress, unit
        self._start, self._started = start, time.monotonic()
        self._task = progress.add_task(name, total=total, completed=start, rate="", note="")

    def update(self, done: int, note: str = "") -> None:
        rate = (done - self._start) / max(time.monotonic() - self._started, 1e-6)
        self._progress.update(self._task, completed=done, rate=f"{rate:.1f} {self._unit}/s", note=note)


class _LogBar:
    def __init__(self, name: str, total: int, unit: str, start: int) -> None:
        self._name, self._total, self._unit, self._start = name, total, unit, start
        self._started = self._printed = time.monotonic()
        self._complete = False

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self._complete or (now - self._printed < LINE_INTERVAL_SECONDS and done < self._total):
            return
        self._printed, self._complete = now, done >= self._total
        rate = (done - self._start) / max(now - self._started, 1e-6)
        minutes, seconds = divmod(round((self._total - done) / rate) if rate > 0 else 0, 60)
        eta = f"in {now - self._started:.0f} s" if self._complete else f"ETA {minutes}:{seconds:02d}"
        text = f"  {self._name}  {done}/{self._total} {self._unit}  {rate:.1f}/s  {eta}  {note}"
        print(text.rstrip(), flush=True)


@contextmanager
def bar(name: str, total: int, unit: str, start: int = 0) -> Iterator[Bar]:
    """Yield a bar for `total` units of work, of which `start` were finished before; it is silent under `--quiet`."""
    if not shows_progress():
        yield _SilentBar()
        return
    if not sys.stderr.isatty():
        yield _LogBar(name, total, unit, start)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        yield _TerminalBar(progress, name, total, unit, start)
