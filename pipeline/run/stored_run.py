"""A whole run in an object store: pushed from its folder, and pulled into one that continues where it stopped.

    objects/SHA256    the content of each file, once
    run.json          name, size, time and checksum of every file; written last

Objects never change and `run.json` is replaced by a single request. So a push that is interrupted leaves the run of the
push before it, and a reader never finds files of two.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from data.files.checksums import file_sha256
from data.files.publish import published
from pipeline.run.lock import RUN_LOCK_NAME, locked
from pipeline.run.objects import OBJECTS_NAME, Objects, StoredRunError, is_same, open_store, readable_errors
from pipeline.run.progress import bar
from pipeline.run.run_files import CONFIG_NAME, StoredFile, StoredRun, differ, files_of, list_run, record_rank

RECORD_NAME = "run.json"
TRANSFERS = 8  # at a time


@dataclass(frozen=True)
class Transfer:
    """What was copied, of what there is."""

    num_files: int
    num_copied: int
    bytes_copied: int
    run: StoredRun
    """What is stored."""


def push_run(run_dir: Path, place: str) -> Transfer:
    """Copy a run's folder to a place in a store; what is there already is not sent again.

    Args:
        place: URI of this run alone; an earlier push of it is replaced.

    Raises:
        StoredRunError: it is no run, another run is stored there, or the store does not take it.
        LockedError: the run is running.
    """
    _check_is_run(run_dir)
    with locked(run_dir / RUN_LOCK_NAME):
        return push_held_run(run_dir, place)


def push_held_run(
    run_dir: Path,
    place: str,
    *,
    logs_alone: bool = True,
    show: bool = True,
    clears: bool = False,
    admit: Callable[[StoredRun | None, StoredRun], None] | None = None,
) -> Transfer:
    """As `push_run`, where the caller holds the lock of the run.

    Args:
        logs_alone: also where nothing but the logs has changed.
        show: a progress bar.
        clears: delete all objects that were there and are of no file of the run, such as parts of checkpoints that have
            been deleted since. Only where nobody else stores objects there but workers of this run, which send again
            what is gone (`RunFiles`).
        admit: called with what is stored and what takes its place, first before anything is sent, and again just before
            the record is replaced; what it raises ends the push.
    """
    _check_is_run(run_dir)
    name, objects = run_dir.resolve().name, Objects(place)
    files, root = open_store(place)
    with readable_errors(place):
        earlier = _read(files, root, place)
        if earlier is not None and earlier.name != name:
            raise StoredRunError(f"{place} holds the run {earlier.name}, not {name}; name another place")
        run = StoredRun(name=name, files=dict(list_run(run_dir, {} if earlier is None else earlier.files)))
        if admit is not None:
            admit(earlier, run)
        if earlier is not None and not differ(run, earlier, logs_alone):
            return Transfer(len(run.files), 0, 0, earlier)
        there = _objects(files, root)
        missing = {
            file.sha256: (name, file) for name, file in run.files.items() if there.get(file.sha256) != file.num_bytes
        }

        _each("push", lambda name, file: objects.put(run_dir / name, file), missing.values(), show=show)
        if admit is not None:
            admit(_read(files, root, place), run)
        files.pipe_file(f"{root}/{RECORD_NAME}", run.model_dump_json().encode())
        stale = set(there) if clears else set()
        stale |= {file.sha256 for file in earlier.files.values()} if earlier is not None else set()
        for digest in stale - {file.sha256 for file in run.files.values()}:
            with suppress(FileNotFoundError):
                files.rm_file(f"{root}/{OBJECTS_NAME}/{digest}")
    return Transfer(len(run.files), len(missing), sum(file.num_bytes for _, file in missing.values()), run)


def _check_is_run(run_dir: Path) -> None:
    if not (run_dir / CONFIG_NAME).is_file():
        raise StoredRunError(f"{run_dir} is not the folder of a run: it holds no {CONFIG_NAME}")


def pull_run(place: str, run_dir: Path, only: Collection[str] = (), *, replaces: bool = False) -> Transfer:
    """Copy a stored run into a folder; files that are there already are not fetched again.

    Args:
        only: folders of the run to fetch, such as `dit` or `dit/checkpoints`, with the files that lie in the folders
            above them; empty: all.
        replaces: first delete all files in `run_dir` that the run does not have, or has with another size or time.

    Raises:
        StoredRunError: no run is stored there, it is damaged, or the folder has files that differ from its own.
        LockedError: a run is running in the folder.
    """
    files, root = open_store(place)
    with readable_errors(place):
        run = _read(files, root, place)
        if run is None:
            raise StoredRunError(f"{place} holds no run: there is no {RECORD_NAME}")
        wanted = chosen_files(run, only, place)
        run_dir.mkdir(parents=True, exist_ok=True)
        with locked(run_dir / RUN_LOCK_NAME):
            if replaces:
                _remove_others(run, run_dir)
            missing, objects = dict(_missing(wanted, run_dir, reads=not replaces)), Objects(place)
            fetched: dict[str, Path] = {}

            def fetch(name: str, file: StoredFile) -> None:
                with published(run_dir / name) as temporary:
                    if (same := fetched.get(file.sha256)) is not None:
                        shutil.copyfile(same, temporary)
                    else:
                        objects.get(name, file, temporary)
                    os.utime(temporary, ns=(file.modified_ns, file.modified_ns))
                fetched[file.sha256] = run_dir / name

            contents = {file.sha256: (name, file) for name, file in missing.items() if not record_rank(name)}
            _each("pull", fetch, contents.values())
            rest = [name for name, file in missing.items() if contents.get(file.sha256) != (name, file)]
            for name in sorted(rest, key=record_rank):
                fetch(name, missing[name])
    return Transfer(len(wanted), len(missing), sum(file.num_bytes for file in missing.values()), run)


def is_stored(place: str) -> bool:
    """Whether a run is stored at a place.

    Raises:
        StoredRunError: the store cannot be read.
    """
    return stored_run(place) is not None


def stored_run(place: str) -> StoredRun | None:
    """The record of the run that is stored at a place, if there is one.

    Raises:
        StoredRunError: the store cannot be read.
    """
    files, root = open_store(place)
    with readable_errors(place):
        return _read(files, root, place)


def read_stored_file(place: str, name: str) -> bytes:
    """The content of a small file of a stored run.

    Raises:
        StoredRunError: no run is stored there, it has no such file or a damaged one, or the store cannot be read.
    """
    files, root = open_store(place)
    with readable_errors(place):
        run = _read(files, root, place)
        if run is None:
            raise StoredRunError(f"{place} holds no run: there is no {RECORD_NAME}")
        if (file := run.files.get(name)) is None:
            raise StoredRunError(f"{place} holds a run without {name}; push the run again")
        return Objects(place).read(name, file)


def chosen_files(run: StoredRun, only: Collection[str], place: str) -> dict[str, StoredFile]:
    """The files of a run in some of its folders, as of `pull_run`.

    Args:
        place: of the run, for messages.

    Raises:
        StoredRunError: it has no such folder.
    """
    names = [PurePosixPath(name) for name in run.files]
    folders = {folder.as_posix() for name in names for folder in name.parents}
    if unknown := sorted(set(only) - folders):
        top = sorted({name.parts[0] for name in names if len(name.parts) > 1})
        raise StoredRunError(f"{place} has no folder {', '.join(unknown)}; it has {', '.join(top)}")
    chosen = [PurePosixPath(folder) for folder in only or (".",)]
    return {
        name: file
        for name, file in run.files.items()
        if any(
            PurePosixPath(name).is_relative_to(folder) or folder.is_relative_to(PurePosixPath(name).parent)
            for folder in chosen
        )
    }


def _remove_others(run: StoredRun, run_dir: Path) -> None:
    """Delete what a folder holds beside the files of a run; first what would call the rest whole."""
    found = [(path.relative_to(run_dir).as_posix(), path) for path in files_of(run_dir)]
    for name, path in sorted(found, key=lambda each: record_rank(each[0]), reverse=True):
        file = run.files.get(name)
        if file is None or not is_same(path, file):
            path.unlink()
    for folder, _, _ in sorted(os.walk(run_dir), reverse=True):
        with suppress(OSError):  # it is not empty
            Path(folder).rmdir()


def _missing(wanted: dict[str, StoredFile], run_dir: Path, *, reads: bool = True) -> Iterator[tuple[str, StoredFile]]:
    """The files that are not there.

    Args:
        reads: compare the contents of those that are there; False: they have been compared by size and time.

    Raises:
        StoredRunError: others are there under their names.
    """
    different = []
    for name, file in wanted.items():
        path = run_dir / name
        if not path.exists():
            yield name, file
        elif reads and (
            not path.is_file() or path.stat().st_size != file.num_bytes or file_sha256(path) != file.sha256
        ):
            different.append(name)
    if different:
        raise StoredRunError(
            f"{run_dir} has {len(different)} files that differ from those stored, such as {different[0]}: pull into "
            "another folder, or remove it"
        )


def _each(
    doing: str,
    copy: Callable[[str, StoredFile], object],
    items: Collection[tuple[str, StoredFile]],
    *,
    show: bool = True,
) -> None:
    """Copy files, several at a time; the first error ends it."""
    shown = bar(doing, len(items), "files") if show else nullcontext()
    with ThreadPoolExecutor(TRANSFERS) as executor, shown as progress:
        copies = [executor.submit(copy, name, file) for name, file in items]
        try:
            for number, done in enumerate(as_completed(copies), 1):
                done.result()
                if progress is not None:
                    progress.update(number)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _read(files: Any, root: str, place: str) -> StoredRun | None:  # noqa: ANN401 - fsspec's
    """The run that is stored at a place, if there is one."""
    try:
        content = files.cat_file(f"{root}/{RECORD_NAME}")
    except FileNotFoundError:
        return None
    try:
        return StoredRun.model_validate_json(content)
    except ValidationError as error:
        raise StoredRunError(
            f"{place}/{RECORD_NAME} is damaged: {error.errors()[0]['msg']}; name another place"
        ) from error


def _objects(files: Any, root: str) -> dict[str, int]:  # noqa: ANN401 - fsspec's
    """The bytes of each object, by its checksum."""
    try:
        found: Iterable[dict[str, Any]] = files.ls(f"{root}/{OBJECTS_NAME}", detail=True)
    except FileNotFoundError:
        return {}
    return {PurePosixPath(each["name"]).name: each["size"] for each in found}
