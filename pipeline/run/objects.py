"""Contents of files in an object store, each once and under its checksum. Many machines read and write them at once.

An object is written by one request (or by a multipart upload, which the last request completes) and never changes: a
reader finds all of it or nothing.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from data.errors import ReelflowError, first_line
from data.files.checksums import file_sha256
from data.files.locations import ASK, LOCAL_SCHEME, client_errors, filesystem_of
from pipeline.run.run_files import StoredFile

T = TypeVar("T")
OBJECTS_NAME = "objects"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
PAUSES = (1.0, 4.0)
"""Where nobody would repeat the command; the clients of stores repeat many requests themselves, before that."""


class StoredRunError(ReelflowError, RuntimeError):
    """A run cannot be pushed or pulled; the message says why, and the way out."""


class MissingObjectError(StoredRunError):
    """There is no object of that checksum."""


def open_store(place: str) -> tuple[Any, str]:
    """The file system of a store, and the path in it.

    Raises:
        StoredRunError: it is no store.
        LocationError: as `filesystem_of`.
    """
    if place.startswith(LOCAL_SCHEME) or "://" not in place:
        raise StoredRunError(f"{place} is no object store, where an object is replaced whole; copy the folder itself")
    files, root = filesystem_of(place)
    files.invalidate_cache()  # listings of earlier calls
    return files, root.rstrip("/")


@contextmanager
def readable_errors(place: str) -> Iterator[None]:
    """Errors of a store within the block become `StoredRunError`."""
    try:
        yield
    except (OSError, *client_errors(place)) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # here, not there
            raise
        raise StoredRunError(f"{place} cannot be used ({first_line(error)}); {ASK}") from error


def described(path: Path) -> StoredFile:
    """Size, time and checksum of a file, which is read."""
    found = path.stat()
    return StoredFile(num_bytes=found.st_size, sha256=file_sha256(path), modified_ns=found.st_mtime_ns)


def is_same(path: Path, file: StoredFile) -> bool:
    """Whether a file has the size and the time of a stored one; its content is not read."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (found.st_size, found.st_mtime_ns) == (file.num_bytes, file.modified_ns)


class Objects:
    """The objects of a run. Several threads may use one of these, and each would otherwise connect for itself.

    Args:
        place: URI of the run in its store.
        pauses: seconds before a request that failed is repeated, as often as there are pauses.

    Raises:
        StoredRunError, LocationError: as `open_store`.
    """

    def __init__(self, place: str, pauses: Sequence[float] = ()) -> None:
        self._place, self._pauses = place, pauses
        self._files, self._root = open_store(place)

    def put(self, path: Path, file: StoredFile) -> bool:
        """Store the content of a file, unless it is there; returns whether it was sent.

        Raises:
            StoredRunError: the file has changed meanwhile, or the store does not take it.
        """
        return self._retried(lambda: self._put(path, file))

    def get(self, name: str, file: StoredFile, path: Path) -> None:
        """Write the content of a file to `path`, with its time, and compare it with its checksum.

        Args:
            name: of the file, for messages.

        Raises:
            MissingObjectError: it is not there.
            StoredRunError: it is damaged, or cannot be read.
        """
        self._retried(lambda: self._get(name, file, path))

    def read(self, name: str, file: StoredFile) -> bytes:
        """The content of a small file. Arguments and errors as of `get`."""
        return self._retried(lambda: self._read(name, file))

    def _read(self, name: str, file: StoredFile) -> bytes:
        with readable_errors(self._place):
            try:
                content: bytes = self._files.cat_file(f"{self._root}/{OBJECTS_NAME}/{file.sha256}")
            except FileNotFoundError as error:
                raise MissingObjectError(f"{self._place} does not hold {name}; push the run again") from error
        if sha256(content).hexdigest() != file.sha256:
            raise StoredRunError(f"{self._place}: what is stored of {name} is damaged; push the run again")
        return content

    def _put(self, path: Path, file: StoredFile) -> bool:
        files, stored = self._files, f"{self._root}/{OBJECTS_NAME}/{file.sha256}"
        with readable_errors(self._place):
            with suppress(FileNotFoundError):
                if files.info(stored)["size"] == file.num_bytes:
                    return False
            files.put_file(str(path), stored)
            if not is_same(path, file):
                files.rm_file(stored)  # it may hold what its name does not say
                raise StoredRunError(f"{path} has changed while it was sent; does something else write there?")
        return True

    def _get(self, name: str, file: StoredFile, path: Path) -> None:
        with readable_errors(self._place):
            try:
                self._files.get_file(f"{self._root}/{OBJECTS_NAME}/{file.sha256}", str(path))
            except FileNotFoundError as error:
                raise MissingObjectError(f"{self._place} does not hold {name}; push the run again") from error
        if file_sha256(path) != file.sha256:
            raise StoredRunError(f"{self._place}: what is stored of {name} is damaged; push the run again")
        os.utime(path, ns=(file.modified_ns, file.modified_ns))

    def _retried(self, request: Callable[[], T]) -> T:
        for pause in self._pauses:
            try:
                return request()
            except StoredRunError as error:
                if not isinstance(error.__cause__, (OSError, *client_errors(self._place))) or isinstance(
                    error.__cause__, FileNotFoundError | PermissionError
                ):
                    raise
            time.sleep(pause)
        return request()
