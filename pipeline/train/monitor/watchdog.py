"""Detection of stalls: a rank without a step for too long writes its stack traces to a file.

A rank that hangs in a collective, in a kernel or in I/O cannot report itself, and its Python threads may be blocked.
`faulthandler` uses a thread in C: after the time limit it writes the stack of every Python thread and does not
interrupt the process.
"""

import faulthandler
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

STALLS_NAME = "stalls"


@contextmanager
def stall_watch(run_dir: Path, rank: int, limit_seconds: float | None) -> Iterator[Callable[[], None]]:
    """Yield a function to call after every step; a longer pause leaves a file in `stalls/`, named by rank and process.

    Args:
        limit_seconds: the longest time between two calls; None turns the detection off.
    """
    if limit_seconds is None:
        yield lambda: None
        return
    folder = run_dir / STALLS_NAME
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank_{rank:05d}-{os.getpid()}.txt"  # a restarted process uses another file
    heading = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}, no step for {limit_seconds:g} s\n"
    with path.open("w", encoding="utf-8") as file:
        file.write(heading)
        file.flush()

        def heartbeat() -> None:
            faulthandler.dump_traceback_later(limit_seconds, repeat=False, file=file)

        heartbeat()
        try:
            yield heartbeat
        finally:
            faulthandler.cancel_dump_traceback_later()
            if path.stat().st_size == len(heading.encode()):
                path.unlink()


def clear_stalls(run_dir: Path) -> None:
    """Delete the files of earlier starts."""
    for path in (run_dir / STALLS_NAME).glob("rank_*.txt"):
        path.unlink(missing_ok=True)


def stalls(run_dir: Path) -> dict[Path, int]:
    """Files with stack traces -> the rank that wrote each."""
    found = {}
    for path in sorted((run_dir / STALLS_NAME).glob("rank_*.txt")):
        try:
            num_lines = path.read_bytes().count(b"\n")
        except FileNotFoundError:  # its rank has just finished and removed the file
            continue
        if num_lines > 1:
            found[path] = int(path.stem.removeprefix("rank_").partition("-")[0])
    return found
