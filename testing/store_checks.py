"""Whether a run can live in a store: what reelflow needs of it, checked with the store itself.

    python -m testing.store_checks az://container/checks

The clients find the store and its credentials in the environment, as they do for reelflow. The folder is emptied first.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from data.files.checksums import file_sha256
from pipeline.run.objects import Objects, StoredRunError
from pipeline.run.run_files import StoredFile
from pipeline.run.stored_run import pull_run, push_held_run, push_run
from pipeline.run.whole_run import WholeRun
from pipeline.run.working_folder import WorkingFolder
from testing.other_machine import OtherMachine

SMALL_FILES, LARGE_BYTES = 40, 150 << 20  # larger than what clients send in one request


@dataclass(frozen=True)
class Trial:
    """Where the checks work."""

    place: str
    folder: Path

    def write(self, name: str, num_files: int = 5, text: str = "made") -> Path:
        """A folder that passes for a run."""
        run_dir = self.folder / name / "demo"
        (run_dir / "clips").mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text("name: demo", encoding="utf-8")
        for number in range(num_files):
            (run_dir / "clips" / f"{number:03d}.tar").write_bytes(f"{text} {number}".encode() * 2000)
        return run_dir


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _refused(call: Callable[[], object], reason: str) -> str:
    """The message of a refusal, which has to say why."""
    try:
        call()
    except StoredRunError as error:
        told = str(error)
    else:
        told = "nothing was refused"
    assert reason in told, told
    return told


def round_trip(trial: Trial) -> str:
    """A run is pushed, with a file that is sent in parts, and pulled with equal bytes."""
    run_dir = trial.write("whole", SMALL_FILES)
    (run_dir / "large").write_bytes(os.urandom(LARGE_BYTES))
    sent = push_run(run_dir, trial.place)
    pull_run(trial.place, trial.folder / "pulled")
    assert _contents(trial.folder / "pulled") == _contents(run_dir)
    assert push_run(run_dir, trial.place).num_copied == 0
    return f"{sent.num_copied} files, {sent.bytes_copied / 1e6:.0f} MB"


def interrupted(trial: Trial) -> str:
    """A push that ends before its record leaves the run of the push before it."""
    place, run_dir = f"{trial.place}-interrupted", trial.write("interrupted", text="first")
    push_run(run_dir, place)
    before = _contents(run_dir)
    trial.write("interrupted", text="second")

    def stop(*_: object) -> None:
        if fsspec.url_to_fs(place)[0].exists(f"{place}/objects/{file_sha256(run_dir / 'clips' / '000.tar')}"):
            raise KeyboardInterrupt

    try:
        push_held_run(run_dir, place, show=False, admit=stop)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it was not interrupted")
    pull_run(place, trial.folder / "before")
    assert _contents(trial.folder / "before") == before
    return "all contents were sent, the record was not"


def two_commands(trial: Trial) -> str:
    """A command does not replace what another one has stored, and fetches it."""
    place = f"{trial.place}-two"
    first, second = (WorkingFolder(trial.folder / name / "demo", place) for name in ("first", "second"))
    for folder in (first, second):
        folder.update()
        trial.write(folder.run_dir.parent.name, text=folder.run_dir.parent.name)
    push_held_run(first.run_dir, place, show=False, admit=first.admit)
    told = _refused(lambda: push_held_run(second.run_dir, place, show=False, admit=second.admit), "another command has")
    assert second.update() is not None
    assert _contents(second.run_dir) == _contents(first.run_dir)
    return told.partition(";")[0]


def apart(trial: Trial) -> str:
    """Machines that share the store alone give and get files."""
    home, place = trial.write("home"), f"{trial.place}-apart"
    other = OtherMachine(trial.folder / "other" / "demo", place, "files-x", whole=WholeRun(home, place))
    other.fetch_folder(other.run_dir / "clips")
    made = other.run_dir / "clips" / "new.tar"
    made.write_bytes(b"pixels" * 10**6)
    other.publish(made)
    assert (home / "clips" / "new.tar").read_bytes() == made.read_bytes()
    return f"{len(_contents(other.run_dir))} files"


def damage(trial: Trial) -> str:
    """A content that is damaged or gone is named."""
    place, run_dir = f"{trial.place}-damaged", trial.write("damaged", num_files=1)
    push_run(run_dir, place)
    files, root = fsspec.url_to_fs(place)
    stored = f"{root}/objects/{file_sha256(run_dir / 'clips' / '000.tar')}"
    files.pipe_file(stored, b"other")
    _refused(lambda: pull_run(place, trial.folder / "copy-1"), "what is stored of clips/000.tar is damaged")
    files.rm_file(stored)
    return _refused(lambda: pull_run(place, trial.folder / "copy-2"), "does not hold clips/000.tar")


def absent(trial: Trial) -> str:
    """What is not there is no error of the store, and a missing bucket is named."""
    _refused(lambda: pull_run(f"{trial.place}-none", trial.folder / "none"), "holds no run")
    scheme = trial.place.partition("://")[0]
    file = StoredFile(num_bytes=1, sha256="0" * 64, modified_ns=0)
    path = trial.folder / "one"
    path.write_bytes(b"1")
    return _refused(lambda: Objects(f"{scheme}://reelflow-no-such-bucket/x").put(path, file), "cannot be used")


CHECKS: Sequence[Callable[[Trial], str]] = (round_trip, interrupted, two_commands, apart, damage, absent)


def main() -> None:
    """Run all checks; exits with 1 where one fails."""
    place = sys.argv[1].rstrip("/")
    files, root = fsspec.url_to_fs(place)
    for found in files.glob(f"{root}*"):
        files.rm(found, recursive=True)
    failed = False
    for check in CHECKS:
        folder, begun = Path(tempfile.mkdtemp(prefix="reelflow-store-")), time.monotonic()
        try:
            told = check(Trial(f"{place}/{check.__name__}", folder))
        except (AssertionError, StoredRunError) as error:
            told, failed = f"FAILED: {error}", True
        finally:
            shutil.rmtree(folder)
        print(f"{check.__name__:13} {time.monotonic() - begun:6.1f} s  {told}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
