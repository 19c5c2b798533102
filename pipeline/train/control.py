"""Control of a running training through files in its folder, which rank 0 looks for.

    touch runs/NAME/dit/save             save a checkpoint after the current step and continue
    touch runs/NAME/dit/save_and_stop    save a checkpoint and stop; the same command resumes from it

The first SIGTERM, which schedulers send before they take a machine away, creates the second file. The signal reaches
one process, but the file reaches rank 0 wherever it runs. That includes workers of Ray, which cannot have signal
handlers of their own, because Ray runs them in a thread.
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
POLL_INTERVAL_SECONDS = 0.5  # a shared file system takes milliseconds to answer, too slow for every step


@dataclass(frozen=True)
class ControlFlags:
    """What is requested of the training."""

    save: bool
    stop: bool


NO_FLAGS = ControlFlags(save=False, stop=False)


class ControlFiles:
    """The control files of one training, and the clock of `checkpoint_every_minutes`. Used by rank 0.

    Args:
        every_minutes: a save is requested this long after the last one; None: by files only.
    """

    def __init__(self, run_dir: Path, every_minutes: float | None) -> None:
        self._run_dir = run_dir
        self._every_seconds = None if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()
        self._polled_at = 0.0

    def poll(self) -> ControlFlags:
        """What is requested now; files are looked for at most every `POLL_INTERVAL_SECONDS`."""
        now = time.monotonic()
        overdue = self._every_seconds is not None and now - self._saved_at >= self._every_seconds
        if now - self._polled_at < POLL_INTERVAL_SECONDS:
            return ControlFlags(overdue, stop=False)
        self._polled_at = now
        save, stop = ((self._run_dir / name).exists() for name in (SAVE_NAME, STOP_NAME))
        return ControlFlags(save or overdue, stop)

    def acknowledge(self, flags: ControlFlags) -> None:
        """Call when a checkpoint was started: restarts the clock and removes the files behind `flags`, and no others.

        Args:
            flags: what `poll` returned before the checkpoint. A file that was created since then remains.
        """
        self._saved_at = time.monotonic()
        for name, raised in ((SAVE_NAME, flags.save), (STOP_NAME, flags.stop)):
            if raised:
                (self._run_dir / name).unlink(missing_ok=True)


def request_save_and_stop(run_dir: Path) -> None:
    """Ask the training in `run_dir` to save and stop."""
    (run_dir / STOP_NAME).touch()


def clear_control_files(run_dir: Path) -> None:
    """Remove the control files of this training or of an earlier one."""
    for name in (SAVE_NAME, STOP_NAME):
        (run_dir / name).unlink(missing_ok=True)


@contextmanager
def sigterm_stops(run_dir: Path) -> Iterator[None]:
    """While the block runs, the first SIGTERM asks the training in `run_dir` to save and stop.

    A second SIGTERM has its usual effect. Outside the main thread, which alone may set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(*_: object) -> None:
        request_save_and_stop(run_dir)
        signal.signal(signal.SIGTERM, before)  # the process can still be ended where no worker is left to react

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
