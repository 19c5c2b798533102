"""What there is to make clips from: sources, each with a name, a place and, from a table, a caption and a span.

`data.source` is one of

    folder/                          every video below it
    folder/**/*.mp4                  a glob
    table.csv, .jsonl, .parquet      columns path, and if wanted caption, start, end (seconds)
    s3://bucket/videos               a folder, file, glob or table of any file system in SCHEMES that fsspec can open
"""

import errno
import glob
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import fsspec

from data.curation.captions import sidecars
from data.errors import ReelflowError, VideoError
from data.files.tables import Row, TableError, read_table
from data.video.formats import VIDEO_SUFFIXES
from data.video.spans import WHOLE, Stretch

SCHEMES = ("file", "memory", "s3", "gs", "az")  # no pipe:, no http: a list of sources must not run or call anything
TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
ASK = "check the address, the credentials and the endpoint (docs/guides/cluster.md, Object stores)"
COLUMNS = ("path", "caption", "start", "end")


class SourceError(ReelflowError, ValueError):
    """Sources there is nothing to make clips from; the message names the place, the field and the way out."""


@dataclass(frozen=True)
class Source:
    """One line of the ledger."""

    name: str  # what the ledger calls it; unique
    path: str  # absolute, or a URI
    file: str  # the video within its folder: equal for two stretches of one video
    root: Path  # what its sidecars and folder names are looked up under
    stamp: str  # changes when it, or a caption beside it, is resized or rewritten
    caption: str | None = None
    stretch: Stretch = WHOLE
    dataset: str = ""  # of a mix, the one it belongs to


def list_sources(place: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Every source at a place, in the order in which their clips lie in the shards.

    Args:
        suffixes: what folders and globs are searched for.

    Raises:
        SourceError: there is none, or the place cannot be read.
    """
    if "://" in place:
        is_table = PurePosixPath(place).suffix.lower() in TABLE_SUFFIXES and not glob.has_magic(place)
        return _list_stored_table(place) if is_table else _list_uri(place, suffixes)
    path = Path(place)
    if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir():
        return _list_table(path)
    if glob.has_magic(place) and not path.exists():
        return _list_glob(place, suffixes)
    return list_folder(path, suffixes)


def of_dataset(name: str, sources: Iterable[Source]) -> list[Source]:
    """The same sources as a part of a mix; their names begin with its name."""
    return [replace(source, name=f"{name}/{source.name}", dataset=name) for source in sources]


def list_folder(folder: Path, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Every video file below a folder, sorted by its path relative to it, which is its name.

    Raises:
        SourceError: the folder is missing, empty, or holds no video.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; set data.source to a folder of videos")
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        raise SourceError(f"{folder} is empty; put videos in it or point data.source elsewhere")
    return _local_sources(folder, files, str(folder), suffixes)


def _list_glob(pattern: str, suffixes: frozenset[str]) -> list[Source]:
    files = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    if not files:
        raise SourceError(f"{pattern} matches no file; set data.source to a folder, a glob or a table of videos")
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return _local_sources(Path(*parts[:plain]), files, pattern, suffixes)


def _local_sources(root: Path, files: list[Path], place: str, suffixes: frozenset[str]) -> list[Source]:
    videos = {path.relative_to(root).as_posix(): path for path in files if path.suffix.lower() in suffixes}
    if not videos:
        found = ", ".join(sorted({path.suffix.lower() or path.name for path in files})[:5])
        raise SourceError(
            f"{place} holds {len(files)} files ({found}) but no video; a video ends in one of "
            f"{' '.join(sorted(suffixes))}"
        )
    sources = []
    for relative in sorted(videos):
        path, name = os.fspath(videos[relative].absolute()), _printable(relative)
        sources.append(Source(name, path, file=name, root=root.absolute(), stamp=_stamp(path)))
    return sources


def _list_table(path: Path) -> list[Source]:
    if not path.is_file():
        raise SourceError(f"{path}: there is no such table; set data.source to a folder, a glob or a table of videos")
    base = path.absolute().parent
    return _sources_of_rows(str(path), path.read_bytes(), base, lambda file: os.fspath(base / file))


def _list_stored_table(uri: str) -> list[Source]:
    folder = uri.rpartition("/")[0]
    with _listing(uri) as (files, name):
        content: Any = files.cat_file(name)
    return _sources_of_rows(uri, content, Path(PurePosixPath(folder).name), lambda file: f"{folder}/{file}")


def _sources_of_rows(table: str, content: bytes, root: Path, place_of: Callable[[str], str]) -> list[Source]:
    """The sources that a table lists.

    Args:
        table: what errors call it.
        root: what captions are looked up under where it has none.
        place_of: from a path that is not a URI to a local path or a URI.
    """
    sources = []
    for number, row in _read_rows(table, content):
        where = f"{table}, row {number}"
        file = row.get("path")
        if not isinstance(file, str) or not file:
            raise SourceError(f"{where}: path is {file!r}; it must name a video")
        caption = row.get("caption")
        if caption is not None and not isinstance(caption, str):
            raise SourceError(f"{where}: caption is {caption!r}; it must be text")
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
        place = file if "://" in file else place_of(file)
        stamp = "" if "://" in place else _stamp(place)
        name = _printable(file)
        sources.append(Source(name + fragment, place, name, root, stamp, caption or None, stretch))
    twice = [name for name, number in Counter(source.name for source in sources).items() if number > 1]
    if twice:
        raise SourceError(f"{table}: {twice[0]} is listed twice; give each row a path and span of its own")
    return sources


def _read_rows(table: str, content: bytes) -> list[tuple[int, Row]]:
    """The numbered rows of a table: at least one, and with a column `path`.

    Raises:
        SourceError: the table is malformed, empty or lacks the column.
    """
    try:
        rows = read_table(table, content)
    except TableError as error:
        raise SourceError(str(error)) from error
    if not rows:
        raise SourceError(f"{table}: it holds no rows; each needs a path and may have {', '.join(COLUMNS[1:])}")
    columns = rows[0][1]
    if "path" not in columns:
        raise SourceError(
            f"{table}: it has no column path, only {', '.join(map(str, columns))}; rename the one that names the videos"
        )
    return rows


def _seconds(value: object, where: str, column: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SourceError(f"{where}: {column} is {value!r}; it must be a number of seconds, 0 or more")
    return seconds


def _exact(seconds: float) -> str:
    """To the microsecond, without zeros at the end."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _list_uri(place: str, suffixes: frozenset[str]) -> list[Source]:
    with _listing(place) as (files, root):
        # With what is known of each: asking for that again would be a request for every object.
        found: Any = files.glob(root, detail=True) if glob.has_magic(root) else files.find(root, detail=True)
    videos = sorted(name for name in found if PurePosixPath(name).suffix.lower() in suffixes)
    if not videos:
        raise SourceError(f"{place} holds no video; a video ends in one of {' '.join(sorted(suffixes))}")
    parts = PurePosixPath(root).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = PurePosixPath(*parts[:plain])
    sources = []
    for name in videos:
        relative = PurePosixPath(name).relative_to(base).as_posix() if name != str(base) else base.name
        relative = _printable(relative)
        uri, stamp = str(files.unstrip_protocol(name)), sha256(str(found[name]).encode()).hexdigest()
        sources.append(Source(relative, uri, file=relative, root=Path(base.name), stamp=stamp))
    return sources


@contextmanager
def _listing(uri: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of a URI and the path in it, with what goes wrong in the block told in words.

    Raises:
        SourceError: the store cannot be reached, refuses, or holds no such thing.
    """
    files, path = _filesystem(uri, "data.source")
    files.invalidate_cache()  # what it held a while ago
    try:
        yield files, path
    except FileNotFoundError as error:
        raise SourceError(f"data.source: {uri} is not there ({error}); {ASK}") from error
    except (OSError, *_client_errors(uri)) as error:
        raise SourceError(f"data.source: {uri} cannot be read ({error}); {ASK}") from error


def _client_errors(uri: str) -> tuple[type[Exception], ...]:
    """What the client of a store raises, beside errors of the operating system, when it gets no answer."""
    if not uri.startswith("s3://"):
        return ()
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError

    return ClientError, BotoCoreError


def _filesystem(uri: str, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it."""
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise SourceError(f"{where}: {uri} is of the kind {scheme!r}; allowed are {', '.join(SCHEMES)}")
    try:
        files, path = fsspec.url_to_fs(uri)
    except ImportError as error:
        raise SourceError(f"{where}: {uri} needs a package that is not installed: {error}") from error
    if not path:
        raise SourceError(f"{where}: {uri} names no bucket")
    return files, str(path)


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """A local path of a source: its own, or a copy that is deleted afterwards.

    Raises:
        VideoError: it is something else than a regular file: a folder, a pipe, a device.
        OSError: it is not there or cannot be read, from a store either.
    """
    if "://" not in source.path:
        path = Path(source.path)
        if not S_ISREG(path.stat().st_mode):
            raise VideoError("not_a_file", "it is not a regular file")
        yield path
        return
    files, name = _filesystem(source.path, source.name)
    with tempfile.TemporaryDirectory(prefix="reelflow-") as folder:
        copy = Path(folder) / f"video{PurePosixPath(name).suffix}"
        try:
            files.get_file(name, str(copy))
        except OSError as error:
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or errno.EIO
            raise OSError(number, f"{source.path}: {error.strerror or error}") from error
        except _client_errors(source.path) as error:
            raise OSError(errno.EIO, f"{source.path}: {error}") from error
        yield copy


def _printable(name: str) -> str:
    """The name as valid Unicode: bytes of a file name that are none are written in hexadecimal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _stamp(path: str) -> str:
    """Size and time of change of a file and of captions beside it.

    A file that is not there is found out when its turn comes.
    """
    stats = []
    for file in (Path(path), *sidecars(Path(path))):
        try:
            stat = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            stats.append("")
        else:
            stats.append(f"{stat.st_size}/{stat.st_mtime_ns}")
    return " ".join(stats)


def listing_fingerprint(sources: Iterable[Source]) -> str:
    """Changes when a source is added, removed, renamed, resized or rewritten, or is told another caption."""
    digest = sha256()
    for source in sources:
        digest.update(f"{source.name}\0{source.caption}\0{source.stamp}\n".encode())
    return digest.hexdigest()[:16]
