"""Asking a training that runs to save, or to save and stop: files in its folder, which rank 0 looks for.

    touch runs/NAME/dit/save             a checkpoint after the step that runs, then on
    touch runs/NAME/dit/save_and_stop    a checkpoint, then the end; the same command goes on from there

SIGTERM, with which schedulers announce that a machine is taken away, becomes the second file: the signal
reaches one process, the file reaches whoever trains, on Ray (whose workers cannot have handlers of their
own: they run in a thread) and off it.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAVE_NAME = "save"
STOP_NAME = "save_and_stop"
LOOK_EVERY_SECONDS = 0.5  # a shared file system answers in milliseconds, too slow for every step


@dataclass(frozen=True)
class Wish:
    """What somebody outside asks of the training."""

    save: bool
    stop: bool


NOTHING = Wish(save=False, stop=False)


class Requests:
    """Rank 0's view of the folder and of the clock."""

    def __init__(self, run_dir: Path, every_minutes: float | None) -> None:
        self._run_dir = run_dir
        self._every_seconds = None if every_minutes is None else 60 * every_minutes
        self._saved = time.monotonic()
        self._looked = 0.0

    def look(self) -> Wish:
        """What is asked for now."""
        now = time.monotonic()
        overdue = self._every_seconds is not None and now - self._saved >= self._every_seconds
        if now - self._looked < LOOK_EVERY_SECONDS:
            return Wish(overdue, stop=False)
        self._looked = now
        save, stop = ((self._run_dir / name).exists() for name in (SAVE_NAME, STOP_NAME))
        return Wish(save or overdue, stop)

    def done(self, wish: Wish) -> None:
        """A checkpoint was begun: the clock starts again, and the wish it fulfilled is taken away, no later one."""
        self._saved = time.monotonic()
        for name, fulfilled in ((SAVE_NAME, wish.save), (STOP_NAME, wish.stop)):
            if fulfilled:
                (self._run_dir / name).unlink(missing_ok=True)


def request_stop(run_dir: Path) -> None:
    """Ask the training in `run_dir` to save and stop."""
    (run_dir / STOP_NAME).touch()


def clear_requests(run_dir: Path) -> None:
    """Forget what was asked, of this training or of an earlier one."""
    for name in (SAVE_NAME, STOP_NAME):
        (run_dir / name).unlink(missing_ok=True)


@contextmanager
def sigterm_stops(run_dir: Path) -> Iterator[None]:
    """While the block runs, the first SIGTERM asks the training in `run_dir` to save and stop; a second one ends us."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may have handlers; whoever owns it decides
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(*_: object) -> None:
        request_stop(run_dir)
        signal.signal(signal.SIGTERM, before)  # where no worker is left to answer, there has to be a way out

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
