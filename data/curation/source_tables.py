"""Sources that the rows of a table name, with their captions and parts."""

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from data.curation.caption_names import video_keys
from data.curation.caption_text import CaptionError, check_caption_value
from data.curation.sidecars import has_sidecar
from data.curation.source import Source, SourceError, source_filesystem, stamp_of
from data.curation.source_stores import local_path, opened_place
from data.errors import printable, quoted
from data.files.locations import LOCAL_SCHEME
from data.files.tables import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    Row,
    TableError,
    column_names,
    find_column,
    read_table,
    table_content,
)
from data.video.spans import WHOLE, Stretch

# Here `path` comes first, in caption tables `file`: a table with both columns may serve as both.
PATH_COLUMNS = ("path", *(name for name in FILE_COLUMNS if name != "path"))


def list_table(path: Path) -> list[Source]:
    """The sources that a table of this machine lists; paths are relative to its folder."""
    try:
        content = table_content(path)
    except TableError as error:
        raise SourceError(f"{error}; data.source is a folder, a glob or a table of videos") from error
    base = path.absolute().parent
    return _sources_of_rows(str(path), content, base, lambda file: os.fspath(base / file))


def list_stored_table(uri: str) -> list[Source]:
    """The sources that a table in a store lists; paths are relative to its folder."""
    folder = uri.rpartition("/")[0]
    with opened_place(uri) as (files, name):
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
            source_filesystem(file, where)
        # The name of a stretch is a media fragment (W3C): video.mp4#t=1.5,4
        fragment = (
            ""
            if stretch == WHOLE
            else f"#t={_exact(stretch.start_seconds)}" + ("" if end is None else f",{_exact(end)}")
        )
        local = local_path(file, where) if file.startswith(LOCAL_SCHEME) else file
        place = local if "://" in local else resolve(local)
        with_sidecar = "://" not in place and has_sidecar(place)
        stamp = "" if "://" in place else stamp_of(place, with_sidecar=with_sidecar)
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
