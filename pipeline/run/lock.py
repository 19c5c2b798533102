"""One process at a time in a folder.

The lock is flock on a file, which the kernel lets go when its process dies, however it dies. The file
also names its holder and is touched while held: on a file system that does not carry flock between
machines, a holder on another machine counts as alive until the file has not been touched for a while.
"""

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from data.errors import ReelflowError
from data.records import Record

TOUCH_EVERY_SECONDS = 10.0
STALE_SECONDS = 90.0
RETRY_SECONDS = 0.2
THIS_MACHINE = "this machine"  # in the place of a name that is just being written


class LockedError(ReelflowError, RuntimeError):
    """Another process works in this folder; the message names it and the way out."""


class Holder(Record):
    """Who holds a lock."""

    host: str
    pid: int
    since: str


@contextmanager
def locked(path: Path, patience_seconds: float = 0.0, patience_elsewhere_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path` while the block runs; wait for it.

    Args:
        patience_seconds: how long, for a holder on this machine.
        patience_elsewhere_seconds: how long for one on another, which may be dead unless it touches its file.

    Raises:
        LockedError: somebody else holds it.
    """
    begun = time.monotonic()
    while isinstance(lock := _take(path), Holder):
        elsewhere = lock.host not in (socket.gethostname(), THIS_MACHINE)
        if time.monotonic() - begun >= (patience_elsewhere_seconds if elsewhere else patience_seconds):
            raise LockedError(
                f"{path.parent} is in use by process {lock.pid} on {lock.host} since {lock.since}; wait until it ends, "
                f"stop it there with `kill {lock.pid}`, or give this run another name"
            )
        time.sleep(RETRY_SECONDS)
    released = threading.Event()

    def touch() -> None:
        while not released.wait(TOUCH_EVERY_SECONDS):
            os.utime(lock)

    thread = threading.Thread(target=touch, name="reelflow-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        released.set()
        thread.join()
        os.ftruncate(lock, 0)  # emptied, not deleted: a second process may have it open already
        os.close(lock)


def _take(path: Path) -> int | Holder:
    """The descriptor of the lock, now ours, or whoever has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor) or Holder(host=THIS_MACHINE, pid=0, since="just now")
        os.close(descriptor)
        return holder
    holder = _holder(descriptor)
    touched_seconds_ago = time.time() - os.fstat(descriptor).st_mtime
    if holder is not None and holder.host != socket.gethostname() and touched_seconds_ago < STALE_SECONDS:
        os.close(descriptor)
        return holder
    since = datetime.now(UTC).isoformat(timespec="seconds")
    own = Holder(host=socket.gethostname(), pid=os.getpid(), since=since)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, own.model_dump_json().encode(), 0)
    return descriptor


def _holder(descriptor: int) -> Holder | None:
    """Who wrote their name into the lock, or None where it was let go or is being written."""
    try:
        return Holder.model_validate_json(os.pread(descriptor, 4096, 0))
    except ValidationError:
        return None
