"""One process at a time in a folder: a lock file that names its holder.

`filelock` takes flock on the file, which the kernel releases when the process dies, however it dies. Some network file
systems do not carry flock between machines. The holder therefore writes its name into the file and touches the file
while it holds the lock: a holder named on another machine counts as alive until the file has not been touched for
`STALE_SECONDS`. That wait is left out on machines that have seen the holder's flock while it was held (`witness`): once
they can take it, that process is dead.
"""

import fcntl
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from data.errors import ReelflowError
from data.records import Record
from pipeline.run.repeating import repeating

RUN_LOCK_NAME = "run.lock"  # of a whole run, in its folder
TOUCH_EVERY_SECONDS = 10.0
STALE_SECONDS = 90.0
RETRY_SECONDS = 0.2
THIS_MACHINE = "this machine"  # instead of the name of a holder that has not written it yet


class LockedError(ReelflowError, RuntimeError):
    """Another process works in this folder; the message names it and the way out."""


class Holder(Record):
    """Who holds a lock: the content of its file."""

    host: str
    pid: int
    since: str
    witnesses: tuple[str, ...] = ()
    """Other machines that cannot take the lock while this process holds it."""


@contextmanager
def locked(path: Path, patience_seconds: float = 0.0, patience_elsewhere_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path` while the block runs; wait for it first.

    Args:
        patience_seconds: longest wait for a holder on this machine.
        patience_elsewhere_seconds: longest wait for a holder on another machine, which may be dead.

    Raises:
        LockedError: another process still holds it after that time.
    """
    lock, begun = FileLock(path, thread_local=False, preserve_lock_file=True), time.monotonic()
    while (holder := _acquire(lock, path)) is not None:
        elsewhere = holder.host not in (socket.gethostname(), THIS_MACHINE)
        if time.monotonic() - begun >= (patience_elsewhere_seconds if elsewhere else patience_seconds):
            raise LockedError(
                f"{path.parent} is in use by process {holder.pid} on {holder.host} since {holder.since}; wait until it "
                f"ends, stop it there with `kill {holder.pid}`, or give this run another name"
            )
        time.sleep(RETRY_SECONDS)
    try:
        with repeating(lambda: os.utime(path), TOUCH_EVERY_SECONDS, "reelflow-lock"):
            yield
    finally:
        os.truncate(path, 0)  # emptied, not deleted: another process may have opened it already
        lock.release()


def _acquire(lock: FileLock, path: Path) -> Holder | None:
    """Take the lock and write our name into its file, or return the process that holds it."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return _named_in(path) or Holder(host=THIS_MACHINE, pid=0, since="just now")
    holder, own_host = _named_in(path), socket.gethostname()
    may_live = holder is not None and own_host not in (holder.host, *holder.witnesses)
    if may_live and time.time() - path.stat().st_mtime < STALE_SECONDS:
        lock.release()
        return holder
    since = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(Holder(host=own_host, pid=os.getpid(), since=since).model_dump_json(), encoding="utf-8")
    return None


def witness(path: Path) -> str | None:
    """This machine's name, if a process on another one holds the lock and it cannot be taken here either.

    None where the file system does not carry flock between the two.
    """
    holder, own_host = _named_in(path), socket.gethostname()
    if holder is None or holder.host == own_host:
        return None
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the file is closed
    except BlockingIOError:
        return own_host
    except OSError:  # no flock at all
        return None
    return None


def record_witnesses(path: Path, hosts: Collection[str]) -> None:
    """Name the machines that `witness` the lock; called by the process that holds it."""
    holder = _named_in(path)
    if holder is None or not hosts:
        return
    told = holder.model_copy(update={"witnesses": tuple(sorted(set(hosts)))})
    with path.open("r+b", buffering=0) as file:  # not emptied first: nobody may find the lock without its holder
        file.write(told.model_dump_json().encode())


def _named_in(path: Path) -> Holder | None:
    """The holder that a lock file names; None if it was released or is being written."""
    try:
        return Holder.model_validate_json(path.read_bytes())
    except ValidationError:
        return None
