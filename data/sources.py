"""What there is to make clips from: sources, each with a name, a place and, from a table, a caption and a span.

`data.source` is one of

    folder/                          every video below it
    folder/**/*.mp4                  a glob
    table.csv, .jsonl, .parquet      columns path, and if wanted caption, start, end (seconds)
    s3://bucket/videos               a folder, file or glob of any file system in SCHEMES that fsspec can open
"""

import csv
import glob
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import StringIO
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data.probe import VideoError
from data.video import VIDEO_SUFFIXES, WHOLE, Stretch

SCHEMES = ("file", "memory", "s3", "gs", "az")  # no pipe:, no http: a list of sources must not run or call anything
TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("path", "caption", "start", "end")


class SourceError(ValueError):
    """Sources there is nothing to make clips from; the message names the place, the field and the way out."""


@dataclass(frozen=True)
class Source:
    """One line of the ledger."""

    name: str  # what the ledger calls it; unique
    path: str  # absolute, or a URI
    file: str  # the video within its folder: equal for two stretches of one video
    caption: str | None = None
    stretch: Stretch = WHOLE


@dataclass(frozen=True)
class Listing:
    """Every source, in the order in which their clips lie in the shards."""

    root: Path  # what sidecars and folder names are looked up under
    sources: list[Source]
    fingerprint: str  # changes when a source is added, removed, resized or rewritten


def list_sources(place: str) -> Listing:
    """Every source at a place.

    Raises:
        SourceError: there is none, or the place is of a kind that cannot be read.
    """
    if "://" in place:
        return _list_uri(place)
    path = Path(place)
    if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir():
        return _list_table(path)
    if glob.has_magic(place) and not path.exists():
        return _list_glob(place)
    return list_folder(path)


def list_folder(folder: Path) -> Listing:
    """Every video file below a folder, sorted by its path relative to it, which is its name.

    Raises:
        SourceError: the folder is missing, empty, or holds no video.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; set data.source to a folder of videos")
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        raise SourceError(f"{folder} is empty; put videos in it or point data.source elsewhere")
    return _local_listing(folder, files, str(folder))


def _list_glob(pattern: str) -> Listing:
    files = [Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207
    if not files:
        raise SourceError(f"{pattern} matches no file; set data.source to a folder, a glob or a table of videos")
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return _local_listing(Path(*parts[:plain]), files, pattern)


def _local_listing(root: Path, files: list[Path], place: str) -> Listing:
    videos = {path.relative_to(root).as_posix(): path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    if not videos:
        found = ", ".join(sorted({path.suffix.lower() or path.name for path in files})[:5])
        raise SourceError(
            f"{place} holds {len(files)} files ({found}) but no video; a video ends in one of "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    listed = ((_printable(name), os.fspath(videos[name].absolute())) for name in sorted(videos))
    sources = [Source(name, path, file=name) for name, path in listed]
    return Listing(root, sources, _fingerprint((s.name, *_stamp(s.path)) for s in sources))


def _list_table(path: Path) -> Listing:
    rows = _read_rows(path)
    sources, base = [], path.absolute().parent
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
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
        fragment = "" if stretch == WHOLE else f"#t={stretch.start_seconds:g}" + ("" if end is None else f",{end:g}")
        place = file if "://" in file else os.fspath(base / file)
        sources.append(Source(_printable(file) + fragment, place, _printable(file), caption or None, stretch))
    twice = [name for name, number in Counter(source.name for source in sources).items() if number > 1]
    if twice:
        raise SourceError(f"{path}: {twice[0]} is listed twice; give each row a path and span of its own")
    stamps = ((s.name, s.caption, *(() if "://" in s.path else _stamp(s.path))) for s in sources)
    return Listing(base, sources, _fingerprint(stamps))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, with at least one of them and a path in each.

    Raises:
        SourceError: it is missing, malformed, empty or lacks the column.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such table; set data.source to a folder, a glob or a table of videos")
    rows: list[Any]
    try:
        if path.suffix.lower() == ".parquet":
            rows = pq.read_table(path).to_pylist()
        elif path.suffix.lower() == ".csv":
            reader = csv.DictReader(StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
            rows = [{key: value or None for key, value in row.items()} for row in reader]
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error, pa.ArrowException) as error:
        raise SourceError(f"{path}: it cannot be read as {path.suffix}: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{path}: it holds no rows; each needs a path and may have {', '.join(COLUMNS[1:])}")
    if "path" not in rows[0]:
        raise SourceError(
            f"{path}: it has no column path, only {', '.join(map(str, rows[0]))}; rename the one of videos"
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


def _list_uri(place: str) -> Listing:
    files, root = _filesystem(place, "data.source")
    names: Any = files.glob(root) if glob.has_magic(root) else files.find(root)
    videos = sorted(name for name in map(str, names) if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise SourceError(f"{place} holds no video; a video ends in one of {' '.join(sorted(VIDEO_SUFFIXES))}")
    parts = PurePosixPath(root).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = PurePosixPath(*parts[:plain])
    sources = []
    for name in videos:
        relative = PurePosixPath(name).relative_to(base).as_posix() if name != str(base) else base.name
        relative = _printable(relative)
        sources.append(Source(relative, str(files.unstrip_protocol(name)), file=relative))
    stamps = ((source.name, str(files.ukey(name))) for source, name in zip(sources, videos, strict=True))
    return Listing(Path(base.name), sources, _fingerprint(stamps))


def _filesystem(uri: str, where: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it."""
    scheme = uri.partition("://")[0]
    if scheme not in SCHEMES:
        raise SourceError(f"{where}: {uri} is of the kind {scheme!r}; allowed are {', '.join(SCHEMES)}")
    try:
        files, path = fsspec.url_to_fs(uri)
    except ImportError as error:
        raise SourceError(f"{where}: {uri} needs a package that is not installed: {error}") from error
    return files, str(path)


@contextmanager
def local_copy(source: Source) -> Iterator[Path]:
    """A local path of a source: its own, or a copy that is deleted afterwards.

    Raises:
        VideoError: it is something else than a regular file: a folder, a pipe, a device.
        OSError: it is not there or cannot be read.
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
        files.get_file(name, str(copy))
        yield copy


def _printable(name: str) -> str:
    """The name as valid Unicode: bytes of a file name that are none are written in hexadecimal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _stamp(path: str) -> tuple[int, int]:
    """Size and time of change; a file that is not there is found out when its turn comes."""
    try:
        stat = Path(path).stat()
    except FileNotFoundError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _fingerprint(stamps: Iterable[Sequence[object]]) -> str:
    digest = sha256()
    for stamp in stamps:
        digest.update(("\0".join(map(str, stamp)) + "\n").encode())
    return digest.hexdigest()[:16]
