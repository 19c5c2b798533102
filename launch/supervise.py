"""The entry point of a job on its cluster: runs the command, and starts it again where it dies.

    python -m launch.supervise --command "train dit" --config job.yaml --restarts 3

Ray runs the entry point of a job once. A command that a signal has ended (killed for memory, or by hand) is started
again after a moment and continues from its last checkpoint, at most `--restarts` times. One that ends by itself is not:
it has finished, has stopped as asked, or has told an error that would come again.

To stop a job, Ray sends SIGTERM to this process and to all below it; it is not passed on here, because a second one
ends a training before it has saved.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data.errors import ReelflowError
from data.files.jsonl import append_line
from data.records import Record
from launch.config import load_config
from launch.errors import describe
from launch.job_environment import check_names, read_environment_file

RESTARTS_NAME = "restarts.jsonl"
MISSING = 78
"""Exit code where the cluster lacks something that the job needs (EX_CONFIG)."""
FIRST_PAUSE_SECONDS = 1.0
PR_SET_PDEATHSIG = 1


class Restart(Record):
    """A line of `logs/restarts.jsonl` in the folder of the run."""

    time: str
    job: str
    number: int
    """From 1."""
    ended_by: str
    """The signal."""


@dataclass
class _Stop:
    """Whether SIGTERM has come."""

    is_asked: bool = False

    def ask(self, *_: object) -> None:
        self.is_asked = True


def supervise(command: Sequence[str], run_dir: Path, restarts: int, environment: Mapping[str, str]) -> int:
    """Run a command until it ends by itself; returns its exit code, that of the last start.

    Args:
        run_dir: of the run, where restarts are recorded.
        restarts: the most there may be.
        environment: variables of the command.
    """
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    for number in range(restarts + 1):
        process = subprocess.Popen(command, env=dict(environment), preexec_fn=_end_with_parent)
        code = process.wait()
        if code >= 0 or stop.is_asked:
            return code if code >= 0 else 128 - code
        ended_by = signal.Signals(-code).name
        if number == restarts:
            print(f"the command was ended by {ended_by} once more, after {restarts} restarts: giving up", flush=True)
            return 128 - code
        _record(run_dir, Restart(time=_now(), job=_job_id(), number=number + 1, ended_by=ended_by))
        print(
            f"the command was ended by {ended_by}; restart {number + 1} of {restarts}, which continues from the last "
            "checkpoint",
            flush=True,
        )
        time.sleep(FIRST_PAUSE_SECONDS * 2**number)
        if stop.is_asked:
            return 128 + signal.SIGTERM
    raise AssertionError("the last start returns")


def _end_with_parent() -> None:
    """A training whose supervisor was killed saves and stops, instead of going on unseen."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _record(run_dir: Path, restart: Restart) -> None:
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    append_line(folder / RESTARTS_NAME, restart)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _job_id() -> str:
    return os.environ.get("REELFLOW_JOB", "")


def main() -> None:
    """Parse the arguments and supervise; exits with the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True, help='such as "run" or "train dit"')
    parser.add_argument("--config", required=True, help="file, or run in a store")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="a variable that has to be set")
    parser.add_argument("--env-file", type=Path, help="file of NAME=VALUE lines on this machine")
    given = parser.parse_args()
    environment = dict(os.environ)
    try:
        if given.env_file is not None:
            environment |= read_environment_file(given.env_file)
        check_names(given.env, environment)
        run_dir = load_config(given.config).run_dir
    except ReelflowError as error:
        print(f"error: {describe(error)}", flush=True)
        sys.exit(MISSING)
    command = [sys.executable, "-m", "launch", *given.command.split(), given.config]
    sys.exit(supervise(command, run_dir, given.restarts, environment))


if __name__ == "__main__":
    main()
