"""What a training does when it no longer moves: every rank that waits too long writes down where.

A rank that hangs in a collective, in a kernel or on a disk cannot report itself, and Python threads may not get to
run. `faulthandler` watches from C: after the time limit it writes the stack of every thread and the training goes on.
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
    """Yield a function to call after every step; a longer pause leaves a file in `stalls/` that names rank and process.

    Args:
        limit_seconds: None watches nothing.
    """
    if limit_seconds is None:
        yield lambda: None
        return
    folder = run_dir / STALLS_NAME
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank_{rank:05d}-{os.getpid()}.txt"  # a restart leaves it as it is
    heading = f"rank {rank}, process {os.getpid()} on {socket.gethostname()}, no step for {limit_seconds:g} s\n"
    with path.open("w", encoding="utf-8") as file:
        file.write(heading)
        file.flush()

        def moved() -> None:
            faulthandler.dump_traceback_later(limit_seconds, repeat=False, file=file)

        moved()
        try:
            yield moved
        finally:
            faulthandler.cancel_dump_traceback_later()
            if path.stat().st_size == len(heading.encode()):
                path.unlink()


def clear_stalls(run_dir: Path) -> None:
    """Forget the stalls of earlier starts."""
    for path in (run_dir / STALLS_NAME).glob("rank_*.txt"):
        path.unlink(missing_ok=True)


def stalls(run_dir: Path) -> dict[Path, int]:
    """Files with stacks, and the rank that left each."""
    found = {}
    for path in sorted((run_dir / STALLS_NAME).glob("rank_*.txt")):
        try:
            num_lines = path.read_bytes().count(b"\n")
        except FileNotFoundError:  # its rank has just ended well
            continue
        if num_lines > 1:
            found[path] = int(path.stem.removeprefix("rank_").partition("-")[0])
    return found
