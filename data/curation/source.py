"""A source: a video that clips are made from, or a part of one, and what is done with its file."""

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from stat import S_ISREG

import fsspec

from data.curation.listing import ListingCounts
from data.curation.sidecars import SidecarNames, has_sidecar, sidecars
from data.errors import ReelflowError, VideoError
from data.files.checksums import file_sha256
from data.files.locations import LocationError, client_errors, filesystem_of
from data.video.spans import WHOLE, Stretch


class SourceError(ReelflowError, ValueError):
    """A list of sources that cannot be used; the message names the place, the field and the way out."""


@dataclass(frozen=True)
class Source:
    """A video, or a part of one, that the ledger accounts for."""

    name: str  # its name in the ledger; unique
    path: str  # absolute path, or a URI
    file: str  # path of the video within its folder; equal for two parts of one video
    root: Path  # the folder that sidecars and folder names are looked up in
    stamp: str  # changes when the file or a sidecar changes in size or modification time
    caption: str | None = None
    stretch: Stretch = WHOLE
    dataset: str = ""  # name of its dataset in a mix; empty where there is no mix
    may_have_sidecar: bool = True  # False: there was none when the folder was listed

    def __hash__(self) -> int:
        """Of its name alone, which is unique."""
        return hash(self.name)

    @property
    def file_stamp(self) -> str:
        """The part of the stamp that is of the file itself."""
        return self.stamp.partition(" ")[0]


@dataclass(frozen=True)
class Listing:
    """The sources at a place, in the order in which their clips are stored in the shards, and what else is there."""

    sources: list[Source]
    counts: ListingCounts = field(default_factory=ListingCounts)


def source_filesystem(uri: str, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it."""
    try:
        return filesystem_of(uri)
    except LocationError as error:
        raise SourceError(f"{where}: {error}") from error


def local_copy(source: Source) -> AbstractContextManager[Path]:
    """A local path of a source: its own, or that of a copy which is deleted afterwards.

    Raises:
        VideoError: it is not a regular file but a folder, a pipe or a device.
        OSError: it does not exist or cannot be read, locally or from a store.
    """
    if "://" in source.path:
        return _downloaded(source)
    try:
        mode = os.stat(source.path).st_mode  # noqa: PTH116 - once for each video
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise OSError(errno.EINVAL, f"no file can have this name ({error})") from error
    if not S_ISREG(mode):
        raise VideoError("not_a_file", "it is not a regular file")
    return nullcontext(Path(source.path))


@contextmanager
def _downloaded(source: Source) -> Iterator[Path]:
    files, name = source_filesystem(source.path, source.name)
    with tempfile.TemporaryDirectory(prefix="reelflow-") as folder:
        copy = Path(folder) / f"video{PurePosixPath(name).suffix}"
        try:
            files.get_file(name, str(copy))
        except OSError as error:
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or errno.EIO
            raise OSError(number, f"{source.path}: {error.strerror or error}") from error
        except client_errors(source.path) as error:
            raise OSError(errno.EIO, f"{source.path}: {error}") from error
        yield copy


def content_of(source: Source) -> str | None:
    """SHA-256 of the file of a source, 64 hexadecimal digits.

    None if the file cannot be read, has changed since it was listed, or is in a store, whose stamps tell as much.
    """
    if "://" in source.path:
        return None
    try:
        content = file_sha256(source.path)
    except (OSError, ValueError):  # as in `local_copy`
        return None
    return content if stamp_of_file(source.path) == source.file_stamp else None


def look_again(sources: Iterable[Source]) -> list[Source]:
    """The sources with what is known now of whether they have a sidecar, which they may have got meanwhile.

    Each folder is listed once.
    """
    names = SidecarNames()
    return [
        source
        if "://" in source.path or source.may_have_sidecar == names.may_have(source.path)
        else replace(source, may_have_sidecar=has_sidecar(source.path))
        for source in sources
    ]


def stamp_of(path: str, *, with_sidecar: bool) -> str:
    """Sizes and modification times of a file and its sidecars."""
    beside = map(stamp_of_file, map(os.fspath, sidecars(Path(path)))) if with_sidecar else ("", "")
    return " ".join((stamp_of_file(path), *beside))


def stamp_of_file(path: str) -> str:
    """Size and modification time of a file.

    Empty if it is missing or cannot be reached, which is no error here: it is reported when it is prepared.
    """
    try:
        stat = os.stat(path)  # noqa: PTH116 - once for each video
    except (OSError, ValueError):
        return ""
    return f"{stat.st_size}/{stat.st_mtime_ns}"


def listing_fingerprint(sources: Iterable[Source]) -> str:
    """Changes when a source is added, removed, renamed or modified, or when the table gives it another caption."""
    digest = sha256()
    for source in sources:
        digest.update(f"{source.name}\0{source.caption}\0{source.stamp}\n".encode())
    return digest.hexdigest()[:16]
