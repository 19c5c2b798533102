"""Sources: the videos that clips are made from, each with a name, a path or URI and, from a table, caption and span.

`data.source` is one of

    folder/                          every video below it
    folder/**/*.mp4                  a glob
    table.csv, .tsv, .jsonl,         columns path and optionally caption, start, end (seconds); the names that the
      .json, .parquet                columns may have are in data/files/tables.py
    s3://bucket/videos               a folder, file, glob or table on any file system in SCHEMES, opened by fsspec
"""

import errno
import glob
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import fsspec

from data.curation.caption_names import video_keys
from data.curation.caption_text import CaptionError, check_caption_value
from data.curation.folders import FoundFiles, find_files, suffix_of
from data.curation.listing import ListingCounts, count_listing, log_listing
from data.curation.sidecars import SIDECAR_SUFFIXES, SidecarNames, has_sidecar, sidecars
from data.errors import ReelflowError, VideoError, printable, quoted
from data.files.checksums import file_sha256
from data.files.locations import ASK, LOCAL_SCHEME, LocationError, client_errors, filesystem_of
from data.files.tables import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    Row,
    TableError,
    column_names,
    find_column,
    is_table,
    read_table,
    table_content,
)
from data.video.formats import VIDEO_SUFFIXES
from data.video.spans import WHOLE, Stretch

# Here `path` comes first, in caption tables `file`: a table with both columns may serve as both.
PATH_COLUMNS = ("path", *(name for name in FILE_COLUMNS if name != "path"))
ANY_FOLDERS = "**"

logger = logging.getLogger(__name__)


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

    @property
    def file_stamp(self) -> str:
        """The part of the stamp that is of the file itself."""
        return self.stamp.partition(" ")[0]


@dataclass(frozen=True)
class Listing:
    """The sources at a place, in the order in which their clips are stored in the shards, and what else is there."""

    sources: list[Source]
    counts: ListingCounts = field(default_factory=ListingCounts)


def list_sources(place: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """The sources of `list_place`."""
    return list_place(place, suffixes).sources


def list_place(place: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> Listing:
    """Every source at a place; what else was found there is logged in one line.

    Args:
        suffixes: of the files that folders and globs are searched for.

    Raises:
        SourceError: there is none, or the place cannot be read.
    """
    if place.startswith(LOCAL_SCHEME):
        place = _local_path(place, "data.source")
    if "://" in place:
        if is_table(place) and not glob.has_magic(place):
            return Listing(_list_stored_table(place))
        return _list_uri(place, suffixes)
    path = Path(place)
    if is_table(path.name) and not os.path.isdir(path):  # noqa: PTH112 - it never raises
        return Listing(_list_table(path))
    if glob.has_magic(place) and not os.path.exists(path):  # noqa: PTH110 - it never raises
        return _list_glob(place, suffixes)
    return _list_folder(path, suffixes)


def of_dataset(name: str, sources: Iterable[Source]) -> list[Source]:
    """The sources as a dataset of a mix: their names get the prefix `name/`."""
    return [replace(source, name=f"{name}/{source.name}", dataset=name) for source in sources]


def list_folder(folder: Path, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Every video file below a folder, sorted by its path relative to the folder, which is its name.

    A file that cannot be read is a source too, and ends in quarantine. Linked folders, and folders that cannot be read,
    are not searched; a warning counts and names them.

    Raises:
        SourceError: the folder is missing, empty, cannot be read, or contains no video.
    """
    return _list_folder(folder, suffixes).sources


def _list_folder(folder: Path, suffixes: frozenset[str]) -> Listing:
    if not os.path.isdir(folder):  # noqa: PTH112 - it never raises
        raise SourceError(f"{folder} is not a folder; set data.source to a folder of videos")
    found = _find_files(folder)
    if not found.files:
        raise SourceError(f"{folder} is empty; put videos in it or point data.source elsewhere")
    return _local_sources(folder, found, str(folder), suffixes)


def _find_files(folder: Path, enters: Callable[[tuple[str, ...]], bool] = lambda _: True) -> FoundFiles:
    try:
        return find_files(folder, enters)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def _list_glob(pattern: str, suffixes: frozenset[str]) -> Listing:
    """The files that a pattern matches as in the shell, below the folder that it begins with."""
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root, wanted = Path(*parts[:plain]), parts[plain:]
    is_folder = os.path.isdir(root)  # noqa: PTH112 - it never raises
    found = _find_files(root, lambda above: _leads_to(above, wanted)) if is_folder else FoundFiles()
    found.files = [file for file in found.files if _matches(tuple(file.split("/")), wanted)]
    if not found.files:
        raise SourceError(f"{pattern} matches no file; set data.source to a folder, a glob or a table of videos")
    return _local_sources(root, found, pattern, suffixes)


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path matches a glob, each in its parts; `**` stands for any number of folders that are not hidden."""
    if not pattern:
        return not parts
    if pattern[0] == ANY_FOLDERS and _matches(parts, pattern[1:]):
        return True
    if not parts or not _is_part(parts[0], pattern[0]):
        return False
    return _matches(parts[1:], pattern if pattern[0] == ANY_FOLDERS else pattern[1:])


def _leads_to(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether something below a folder may match a glob."""
    if not parts or not pattern:
        return bool(pattern)
    if pattern[0] == ANY_FOLDERS and _leads_to(parts, pattern[1:]):
        return True
    return _is_part(parts[0], pattern[0]) and _leads_to(
        parts[1:], pattern if pattern[0] == ANY_FOLDERS else pattern[1:]
    )


def _is_part(name: str, pattern: str) -> bool:
    if not glob.has_magic(pattern):
        return name == pattern
    return fnmatchcase(name, pattern) and (pattern.startswith(".") or not name.startswith("."))


def _local_sources(root: Path, found: FoundFiles, place: str, suffixes: frozenset[str]) -> Listing:
    videos = sorted(file for file in found.files if suffix_of(file).lower() in suffixes)
    counts = count_listing(found.files, videos, found)
    log_listing(place, len(videos), counts, found)
    if not videos:
        kinds = ", ".join(sorted({suffix_of(file).lower() or file.rpartition("/")[2] for file in found.files})[:5])
        raise SourceError(
            f"{place} holds {len(found.files)} files ({kinds}) but no video; a video ends in one of "
            f"{' '.join(sorted(suffixes))}"
        )
    folder = root.absolute()
    before = os.path.join(folder, "")  # noqa: PTH118 - with a slash at the end
    sources = []
    for file, name in _names(videos).items():
        path = before + file
        with_sidecar = found.sidecars.may_have(file) and has_sidecar(path)
        stamp = _stamp(path, with_sidecar=with_sidecar)
        sources.append(Source(name, path, file=name, root=folder, stamp=stamp, may_have_sidecar=with_sidecar))
    return Listing(sources, counts)


def _names(paths: list[str]) -> dict[str, str]:
    """The name in the ledger of each path: its printable form, followed by its bytes where that is another's name."""
    shown = [printable(path) for path in paths]
    counts = Counter(shown)
    names = {}
    for path, name in zip(paths, shown, strict=True):
        is_shared = name != path and counts[name] > 1
        names[path] = f"{name}#bytes={os.fsencode(path).hex()}" if is_shared else name
    return names


def _list_table(path: Path) -> list[Source]:
    try:
        content = table_content(path)
    except TableError as error:
        raise SourceError(f"{error}; data.source is a folder, a glob or a table of videos") from error
    base = path.absolute().parent
    return _sources_of_rows(str(path), content, base, lambda file: os.fspath(base / file))


def _list_stored_table(uri: str) -> list[Source]:
    folder = uri.rpartition("/")[0]
    with _listing(uri) as (files, name):
        content: Any = files.cat_file(name)
    return _sources_of_rows(uri, content, Path(PurePosixPath(folder).name), lambda file: f"{folder}/{file}")


def _sources_of_rows(table: str, content: bytes, root: Path, resolve: Callable[[str], str]) -> list[Source]:
    """The sources that a table lists.

    Args:
        table: its path or URI.
        root: the folder that captions are looked up in where the table has none.
        resolve: makes an absolute path or a URI of a path in the table that is not a URI.
    """
    rows, path_column, caption_column = _read_rows(table, content)
    sources = []
    for number, row in rows:
        where = f"{table}, row {number}"
        file = row.get(path_column)
        if not isinstance(file, str) or not file:
            raise SourceError(f"{where}: {path_column} is {quoted(file)}; it must name a video")
        try:
            caption = check_caption_value(where, caption_column or "", row.get(caption_column or ""))
        except CaptionError as error:
            raise SourceError(str(error)) from error
        start, end = (_seconds(row.get(column), where, column) for column in ("start", "end"))
        stretch = Stretch(start or 0.0, float("inf") if end is None else end)
        if stretch.end_seconds <= stretch.start_seconds:
            raise SourceError(f"{where}: end is {end:g}, which is not after start {stretch.start_seconds:g}")
        if "://" in file:
            _filesystem(file, where)
        # The name of a stretch is a media fragment (W3C): video.mp4#t=1.5,4
        fragment = (
            ""
            if stretch == WHOLE
            else f"#t={_exact(stretch.start_seconds)}" + ("" if end is None else f",{_exact(end)}")
        )
        local = _local_path(file, where) if file.startswith(LOCAL_SCHEME) else file
        place = local if "://" in local else resolve(local)
        with_sidecar = "://" not in place and has_sidecar(place)
        stamp = "" if "://" in place else _stamp(place, with_sidecar=with_sidecar)
        name = printable(file)
        sources.append(
            Source(name + fragment, place, name, root, stamp, caption, stretch, may_have_sidecar=with_sidecar)
        )
    _check_once(table, [number for number, _ in rows], sources)
    return sources


def _check_once(table: str, numbers: list[int], sources: list[Source]) -> None:
    """Refuse a table in which two rows are one source, even in two spellings (`a.mp4` and `./a.mp4`)."""
    seen: dict[object, int] = {}
    keys = zip(video_keys(source.path for source in sources), sources, strict=True)
    for at, (key, source) in enumerate(keys):
        for mark in (source.name, (key, source.stretch)):
            first = seen.setdefault(mark, at)
            if first == at:
                continue
            same = sources[first].name == source.name
            names = f"{source.name} is" if same else f"{sources[first].name} and {source.name} are one source and"
            raise SourceError(
                f"{table}, rows {numbers[first]} and {numbers[at]}: {names} listed twice; give each row a path and "
                f"span of its own"
            )


def _read_rows(table: str, content: bytes) -> tuple[list[tuple[int, Row]], str, str | None]:
    """The numbered rows of a table, at least one, and the names of its columns of paths and of captions, if any.

    Raises:
        SourceError: the table is malformed, empty or lacks a column of paths.
    """
    try:
        rows = read_table(table, content)
        path_column, caption_column = (find_column(table, rows, names) for names in (PATH_COLUMNS, CAPTION_COLUMNS))
    except TableError as error:
        raise SourceError(str(error)) from error
    if not rows:
        raise SourceError(f"{table}: it holds no rows; each needs a path and may have caption, start, end")
    if path_column is None:
        raise SourceError(
            f"{table}: it has no column path, only {column_names(rows[0][1])}; rename the one that names the videos"
        )
    return rows, path_column, caption_column


def _seconds(value: object, where: str, column: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = -1.0 if "_" in str(value) else float(str(value))  # Python takes 1_0 for 10
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SourceError(f"{where}: {column} is {quoted(value)}; it must be a number of seconds, 0 or more")
    return seconds


def _exact(seconds: float) -> str:
    """Seconds with microseconds, without trailing zeros."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _list_uri(place: str, suffixes: frozenset[str]) -> Listing:
    with _listing(place) as (files, root):
        # With details, which would otherwise take a request per object.
        found: Any = files.glob(root, detail=True) if glob.has_magic(root) else files.find(root, detail=True)
    videos = sorted(name for name in found if PurePosixPath(name).suffix.lower() in suffixes)
    if not videos:
        raise SourceError(f"{place} holds no video; a video ends in one of {' '.join(sorted(suffixes))}")
    parts = PurePosixPath(root).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = PurePosixPath(*parts[:plain])
    relative = {
        PurePosixPath(name).relative_to(base).as_posix() if name != str(base) else base.name: name for name in videos
    }
    sources = []
    for path, name in _names(list(relative)).items():
        stored = relative[path]
        uri, stamp = str(files.unstrip_protocol(stored)), sha256(str(found[stored]).encode()).hexdigest()
        root_name = Path(base.name)
        sources.append(Source(name, uri, file=name, root=root_name, stamp=stamp, may_have_sidecar=False))
    _warn_of_sidecars(place, videos, found)
    counts = count_listing(found, videos, FoundFiles())
    log_listing(place, len(videos), counts, FoundFiles())
    return Listing(sources, counts)


def _warn_of_sidecars(place: str, videos: Iterable[str], found: Container[str]) -> None:
    """Say how many sidecars in a store are not read: only those beside videos on a local disk are."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in videos}
    unread = sum(stem + suffix in found for stem in stems for suffix in SIDECAR_SUFFIXES)
    if unread:
        logger.warning(
            "%s: %d sidecars beside the videos are not read, as they are not on a local disk; put their captions in a "
            "table and name it in data.captions",
            *(place, unread),
        )


def _local_path(uri: str, where: str) -> str:
    """The absolute path that a `file://` URI stands for."""
    path = uri.removeprefix(LOCAL_SCHEME)
    if not path:
        raise SourceError(f"{where}: {uri} names no file or folder; write file:///absolute/path")
    return os.fspath(Path(path).absolute())


@contextmanager
def _listing(uri: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of a URI and the path in it; errors within the block become `SourceError`.

    Raises:
        SourceError: the store cannot be reached, denies access, or has no such file.
    """
    files, path = _filesystem(uri, "data.source")
    files.invalidate_cache()  # listings cached earlier in this process
    try:
        yield files, path
    except FileNotFoundError as error:
        raise SourceError(f"data.source: {uri} is not there ({error}); {ASK}") from error
    except (OSError, *client_errors(uri)) as error:
        raise SourceError(f"data.source: {uri} cannot be read ({error}); {ASK}") from error


def _filesystem(uri: str, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it."""
    try:
        return filesystem_of(uri)
    except LocationError as error:
        raise SourceError(f"{where}: {error}") from error


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """A local path of a source: its own, or that of a copy which is deleted afterwards.

    Raises:
        VideoError: it is not a regular file but a folder, a pipe or a device.
        OSError: it does not exist or cannot be read, locally or from a store.
    """
    if "://" not in source.path:
        try:
            mode = os.stat(source.path).st_mode  # noqa: PTH116 - once for each video
        except ValueError as error:  # a null character, or half of a surrogate pair
            raise OSError(errno.EINVAL, f"no file can have this name ({error})") from error
        if not S_ISREG(mode):
            raise VideoError("not_a_file", "it is not a regular file")
        yield Path(source.path)
        return
    files, name = _filesystem(source.path, source.name)
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
        with local_copy(source) as path:
            content = file_sha256(path)
    except (OSError, VideoError):
        return None
    return content if _stamp_of_file(source.path) == source.file_stamp else None


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


def _stamp(path: str, *, with_sidecar: bool) -> str:
    """Sizes and modification times of a file and its sidecars."""
    return " ".join(map(_stamp_of_file, (path, *(map(os.fspath, sidecars(Path(path))) if with_sidecar else ("", "")))))


def _stamp_of_file(path: str) -> str:
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
