"""Jobs that do what their name says, for tests of the pool that isolates them."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.distributed.isolated_worker import allow_until


def misbehave(folder: Path, job: str) -> tuple[tuple[str, int], list[str]]:
    """A job `<what to do> <number>`; each attempt leaves a file in `folder`.

    Returns:
        The job and its process, and a payload that names the job.

    Raises:
        ValueError: it is asked for.
        OSError: it is asked for.
    """
    what = job.partition(" ")[0]
    (folder / f"{job} {time.monotonic_ns()}").touch()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "raise":
        raise ValueError(f"in {job}")
    elif what == "long":
        allow_until(time.monotonic() + 60)
        time.sleep(4)
    return (job, os.getpid()), [job]


def with_jobs(jobs: Sequence[str], reports: Sequence[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """The `finish` of a pool: the job as it is given, the process of its report, and the number of jobs together."""
    return [(job, process, len(jobs)) for job, (name, process) in zip(jobs, reports, strict=True) if job == name]


def write_down(path: Path, *payloads: list[str]) -> None:
    """Write the names in payloads, one a line."""
    path.write_text("\n".join(name for payload in payloads for name in payload))


def note_call(path: Path, *, is_fatal: bool = False) -> None:
    """Add the process to a file; end it if it is fatal and the first call of that file."""
    is_first = not path.exists()
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if is_fatal and is_first:
        os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(path: Path) -> None:
    """Write to a device that is always full."""
    path.write_bytes(b"x")
