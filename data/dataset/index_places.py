"""Where the mapped file of an index is: made when an index is first read, by one process of all that wait for it.

It lies beside index.parquet; where that folder cannot be written, in the user's cache folder; and where that cannot be
written either, in a file without a name that this process alone has.
"""

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from data.dataset.index_build import build_index_file
from data.dataset.index_file import IndexFile
from data.errors import DatasetError, first_line

logger = logging.getLogger(__name__)

INDEX_NAME = "index.parquet"
MAPPED_NAME = "index.mmap"
READ_BYTES = 1 << 20


def open_index_file(dataset_dir: Path) -> IndexFile:
    """The mapped file of the index of a dataset, made if need be.

    Raises:
        DatasetError: the index is missing or damaged.
    """
    with _opened(dataset_dir) as file:
        made_from = _fingerprint(file)
        places = [dataset_dir / MAPPED_NAME, *_cache_places(dataset_dir)]
        if found := _find(places, made_from):
            return found
        _lock(file)  # until it is closed
        return _find(places, made_from) or _make(file, places, made_from)


@contextmanager
def opened_parquet(dataset_dir: Path) -> Iterator[pq.ParquetFile]:
    """The index as published; errors while it is read are reported as `DatasetError`."""
    with _opened(dataset_dir) as file, pq.ParquetFile(file, buffer_size=READ_BYTES) as parquet:
        yield parquet


@contextmanager
def _opened(dataset_dir: Path) -> Iterator[BinaryIO]:
    """The file of the index; errors while it is read are reported as `DatasetError`."""
    path = dataset_dir / INDEX_NAME
    if not path.is_file():
        raise DatasetError(f"{dataset_dir} holds no {INDEX_NAME} although it has a manifest; make {dataset_dir} again")
    try:
        with path.open("rb") as file:
            yield file
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        if isinstance(error, OSError) and error.errno is not None:  # not one of Arrow's, which mean damage
            raise DatasetError(f"{path} cannot be read ({error.strerror})") from error
        raise DatasetError(f"{path} is damaged ({first_line(error)}); make {dataset_dir} again") from error


def _fingerprint(file: BinaryIO) -> str:
    """Of an index: its size, time of change, and its footer, which has offsets, sizes and ranges of all columns."""
    state = os.fstat(file.fileno())
    length = int.from_bytes(os.pread(file.fileno(), 4, max(0, state.st_size - 8)), "little")
    if length + 8 > state.st_size:
        raise ValueError("it is cut short")
    footer = os.pread(file.fileno(), length, state.st_size - 8 - length)
    return f"{state.st_size} {state.st_mtime_ns} {sha256(footer).hexdigest()}"


def _cache_places(dataset_dir: Path) -> list[Path]:
    """In the user's cache folder, if there is one."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # the user has no home
        return []
    return [cache / "reelflow" / f"{sha256(os.fsencode(dataset_dir.resolve())).hexdigest()[:20]}-{MAPPED_NAME}"]


def _find(places: list[Path], made_from: str) -> IndexFile | None:
    for path in places:
        try:
            if found := IndexFile.open(path, made_from):
                return found
        except OSError as error:
            logger.info("%s cannot be read: %s", path, error)
    return None


def _lock(file: BinaryIO) -> None:
    """Wait for a process that makes the file. Some network file systems cannot lock; there, each makes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        logger.info("%s cannot be locked: %s", file.name, error)


def _make(file: BinaryIO, places: list[Path], made_from: str) -> IndexFile:
    parquet, problems = pq.ParquetFile(file, buffer_size=READ_BYTES), []
    for path in places:
        try:
            build_index_file(parquet, path, made_from)
            found = IndexFile.open(path, made_from)
        except OSError as error:
            if error.errno is None:  # Arrow's own errors: the index is damaged
                raise
            problems.append(f"{path}: {error.strerror}")
            continue
        if found is not None:
            return found
        problems.append(f"{path}: it was replaced while it was opened")
    logger.warning("each process makes an index of its own, as no file can be shared (%s)", "; ".join(problems))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MAPPED_NAME
            build_index_file(parquet, path, made_from)
            found = IndexFile.open(path, made_from)
    except OSError as error:
        if error.errno is None:
            raise
        raise DatasetError(f"no folder has room for {MAPPED_NAME} ({'; '.join(problems)}; {error})") from error
    assert found is not None
    return found
