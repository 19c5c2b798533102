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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from io import StringIO
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from data.captions import sidecars
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
        SourceError: there is none, or the place is of a kind that cannot be read.
    """
    if "://" in place:
        return _list_uri(place, suffixes)
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
        fragment = (
            ""
            if stretch == WHOLE
            else f"#t={_exact(stretch.start_seconds)}" + ("" if end is None else f",{_exact(end)}")
        )
        place = file if "://" in file else os.fspath(base / file)
        stamp = "" if "://" in file else _stamp(place)
        name = _printable(file)
        sources.append(Source(name + fragment, place, name, base, stamp, caption or None, stretch))
    twice = [name for name, number in Counter(source.name for source in sources).items() if number > 1]
    if twice:
        raise SourceError(f"{path}: {twice[0]} is listed twice; give each row a path and span of its own")
    return sources


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


def _exact(seconds: float) -> str:
    """To the microsecond, without zeros at the end."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _list_uri(place: str, suffixes: frozenset[str]) -> list[Source]:
    files, root = _filesystem(place, "data.source")
    names: Any = files.glob(root) if glob.has_magic(root) else files.find(root)
    videos = sorted(name for name in map(str, names) if PurePosixPath(name).suffix.lower() in suffixes)
    if not videos:
        raise SourceError(f"{place} holds no video; a video ends in one of {' '.join(sorted(suffixes))}")
    parts = PurePosixPath(root).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = PurePosixPath(*parts[:plain])
    sources = []
    for name in videos:
        relative = PurePosixPath(name).relative_to(base).as_posix() if name != str(base) else base.name
        relative = _printable(relative)
        uri, stamp = str(files.unstrip_protocol(name)), str(files.ukey(name))
        sources.append(Source(relative, uri, file=relative, root=Path(base.name), stamp=stamp))
    return sources


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
