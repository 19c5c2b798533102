"""The folder of a whole run, on the machine of the command, as the other machines ask it (`shared_files.py`)."""

import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.files.publish import TEMPORARY_PREFIX, published, remove_unpublished
from pipeline.run.objects import PAUSES, Objects, described, is_same
from pipeline.run.run_files import StoredFile, check_name, files_of
from pipeline.run.shared_files import SupersededError
from pipeline.run.stored_run import stored_run

T = TypeVar("T")
TRANSFERS = 8  # at a time


@dataclass(frozen=True)
class Addition:
    """What has come to a file that is written bit by bit."""

    name: str
    """In the run's folder."""
    content: bytes
    is_whole: bool
    """It is the whole file, not its new end."""


class WholeRun:
    """The folder of a run on the machine of the command, which answers the processes of the others. Thread-safe.

    Args:
        is_run: False: the folder is another one than what is stored at `place`, and is only read.
    """

    def __init__(self, run_dir: Path, place: str, is_run: bool = True) -> None:
        self._run_dir, self._objects = run_dir, Objects(place, PAUSES)
        stored = (
            stored_run(place) if is_run else None
        )  # so that what has not changed since is neither read nor sent again
        self._known: dict[str, StoredFile] = {} if stored is None else dict(stored.files)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._start = ""

    def begin(self, start: str, folder: Path) -> None:
        """The workers of a training start, and those of earlier starts are refused from here on."""
        self._start = start
        for each in (folder, *(path for path in folder.glob("*") if path.is_dir())):
            remove_unpublished(each)

    def offer(self, names: Sequence[str], again: bool = False) -> dict[str, StoredFile]:
        """Store the contents of files, and say which they are; those that do not exist are left out.

        Args:
            again: also contents that were stored before, since they are gone.
        """

        def offered(name: str) -> tuple[str, StoredFile] | None:
            path = self._run_dir / check_name(name)
            with self._locks[name]:
                known = self._known.get(name)
                if known is None or not is_same(path, known) or again:
                    if not path.is_file():
                        return None
                    known = described(path)
                    self._objects.put(path, known)
                    self._known[name] = known
                return name, known

        with ThreadPoolExecutor(TRANSFERS) as executor:
            return dict(found for found in executor.map(offered, names) if found is not None)

    def names_below(self, folder: str) -> list[str]:
        """The files of a folder, as the store gets them."""
        return [
            path.relative_to(self._run_dir).as_posix()
            for path in files_of(self._run_dir, self._run_dir / check_name(folder))
        ]

    def take(self, start: str | None, files: dict[str, StoredFile], record: str | None) -> None:
        """Fetch files that were made on another machine, the record last; one of older files is deleted first.

        Raises:
            SupersededError: they are of an earlier start of a training.
        """
        self._check(start)
        others = {name: file for name, file in files.items() if name != record}
        if record is not None and any(not is_same(self._run_dir / name, file) for name, file in others.items()):
            (self._run_dir / check_name(record)).unlink(missing_ok=True)
        with ThreadPoolExecutor(TRANSFERS) as executor:
            list(executor.map(self._take, others.keys(), others.values()))
        if record is not None:
            self._take(record, files[record])

    def _take(self, name: str, file: StoredFile) -> None:
        with self._locks[name]:
            receive(self._objects, self._run_dir / check_name(name), name, file)
            self._known[name] = file

    def add(self, start: str, additions: Sequence[Addition], removed: Sequence[str]) -> None:
        """Write what has come to files of a training.

        Raises:
            SupersededError: of an earlier start.
        """
        self._check(start)
        for name in removed:
            (self._run_dir / check_name(name)).unlink(missing_ok=True)
        for addition in additions:
            path = self._run_dir / check_name(addition.name)
            if addition.is_whole:
                with published(path) as temporary:
                    temporary.write_bytes(addition.content)
            else:
                with path.open("ab") as file:
                    file.write(addition.content)

    def existing(self, names: Sequence[str]) -> list[str]:
        """Those of some files that exist."""
        return [name for name in names if (self._run_dir / check_name(name)).exists()]

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self._run_dir / check_name(name)).unlink(missing_ok=True)

    def call(self, start: str | None, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - of any function
        """Call a function here.

        Raises:
            SupersededError: by an earlier start of a training.
        """
        self._check(start)
        return function(*arguments)

    def _check(self, start: str | None) -> None:
        if start is not None and start != self._start:
            raise SupersededError("another start of this training has begun, and this one is given up")


def receive(objects: Objects, path: Path, name: str, file: StoredFile) -> None:
    """Publish a content at `path`, unless it is there."""
    if not is_same(path, file):
        with published(path) as temporary:
            objects.get(name, file, temporary)


def remove_others(run_dir: Path, folder: Path, names: Sequence[str]) -> None:
    """Delete the files of a folder that are not named, but for what a training makes anew, and temporary ones."""
    kept = set(names)
    for path in list(files_of(run_dir, folder)):
        if path.relative_to(run_dir).as_posix() not in kept:
            path.unlink()
    for path in folder.glob("*/*"):
        if path.is_dir() and not any(path.iterdir()) and not path.name.startswith(TEMPORARY_PREFIX):
            shutil.rmtree(path)
