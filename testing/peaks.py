"""Peak memory of one computation, measured in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

SMALL_BLOCK = str(2**17)  # bytes from which the allocator returns a freed block to the system at once


def above_base(call: Callable[[], object]) -> int:
    """The most resident memory of this process during a call, above what it had before, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux forgets the largest so far
    base = psutil.Process().memory_info().rss
    call()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) - base


def output_of_new_process(*arguments: str) -> str:
    """The last line that `python -m ARGUMENTS` prints, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": SMALL_BLOCK}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()[-1]
