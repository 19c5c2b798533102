"""Folders of stored runs, such as `s3://bucket/runs/demo/dit`, as folders of this machine that commands can read."""

import fcntl
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from filelock import FileLock

from data.files.locations import is_uri
from pipeline.run.local_folders import COPIES, cache_folder, local_folder
from pipeline.run.objects import StoredRunError, is_same
from pipeline.run.run_files import StoredFile, StoredRun
from pipeline.run.snapshot import CHECKPOINTS_NAME, LATEST_NAME
from pipeline.run.stored_run import chosen_files, pull_run, read_stored_file, stored_run


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a stored run."""

    place: str
    """URI of the run."""
    run: StoredRun
    name: str
    """In the run; `.` is the run itself."""

    @property
    def needed(self) -> str:
        """What readers need of it: of a training the newest checkpoint, and what lies beside the others."""
        pointer = (PurePosixPath(self.name) / LATEST_NAME).as_posix()
        if pointer not in self.run.files:
            return self.name
        newest = read_stored_file(self.place, pointer).decode("utf-8", "replace").strip()
        return (PurePosixPath(self.name) / CHECKPOINTS_NAME / newest).as_posix()


@contextmanager
def local_copies(*places: str, also: Collection[str] = ()) -> Iterator[list[Path]]:
    """Yield folders of this machine with the content of `places`, of which paths are given back as they are.

    Folders of stored runs are fetched into this user's folder for caches, but for what is there already. Nobody changes
    a copy while the block runs.

    Args:
        places: paths, or URIs of stored runs or of folders in them.
        also: folders of these runs that are fetched too, where they have them.

    Raises:
        StoredRunError: no run is stored there, it has no such folder, or the store cannot be read.
    """
    found = {place: find_stored(place) for place in places if is_uri(place)}
    needed: defaultdict[str, list[StoredFolder]] = defaultdict(list)
    for stored in found.values():
        needed[stored.place].append(stored)
    with ExitStack() as held:
        copies = {run: held.enter_context(_held_copy(folders, also)) for run, folders in needed.items()}
        yield [copies[found[each].place] / found[each].name if each in found else Path(each) for each in places]


def find_stored(uri: str) -> StoredFolder:
    """The stored run that a URI is of, or is a folder of.

    Raises:
        StoredRunError: there is none, or the store cannot be read.
    """
    place, name = uri.rstrip("/"), PurePosixPath()
    refused: StoredRunError | None = None
    while not place.endswith(("/", ":")):
        try:
            run = stored_run(place)
        except StoredRunError as error:  # without the right to list a bucket, what is not there is forbidden
            if not isinstance(error.__cause__, PermissionError):
                raise
            refused, run = refused or error, None
        if run is not None:
            return StoredFolder(place, run, name.as_posix())
        place, _, last = place.rpartition("/")
        name = last / name
    raise refused or StoredRunError(f"{uri} is no stored run, nor a folder of one: no run.json is there or above it")


@contextmanager
def _held_copy(stored: Sequence[StoredFolder], also: Collection[str]) -> Iterator[Path]:
    """Yield a copy of parts of a run. One that another command reads is shared if it is current, and left otherwise."""
    place, run = stored[0].place, stored[0].run
    there = {PurePosixPath(name).parts[0] for name in run.files if "/" in name}
    only = [*(folder.needed for folder in stored), *(name for name in also if name in there)]
    wanted, root = chosen_files(run, only, place), cache_folder() / COPIES
    lock = local_folder(f"{place}.lock", root)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with FileLock(lock):
            folders = (local_folder(place, root / str(number)) for number in count(1))
            folder = next(each for each in folders if _is_held(each, wanted, held))
            if not _is_current(folder, wanted):
                pull_run(place, folder, only, replaces=True)
        yield folder


def _is_held(folder: Path, wanted: Mapping[str, StoredFile], held: ExitStack) -> bool:
    """Keep others from changing a copy, if nobody reads it or it needs no change; called by one process at a time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        # Opened for writing, as network file systems ask of an exclusive lock.
        descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT)
        opened.callback(os.close, descriptor)
        if not _is_current(folder, wanted):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        held.push(opened.pop_all())
    return True


def _is_current(folder: Path, wanted: Mapping[str, StoredFile]) -> bool:
    return all(is_same(folder / name, file) for name, file in wanted.items())
