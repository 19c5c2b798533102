"""Caption tables: read and checked whole, and compared with the videos that they are for."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from data.curation.caption_names import clean_file_name, names_of, video_keys
from data.curation.caption_text import CaptionError, check_caption_value
from data.errors import quoted
from data.files.tables import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    TABLE_SUFFIXES,
    Row,
    TableError,
    column_names,
    find_column,
    is_table,
    read_table,
    table_content,
)

MAX_COMPARED_NAMES = 1000  # that the nearest name is looked for among
MAX_SHOWN_ROWS = 3
MISSING = object()  # a cell that a row of a CSV file lacks


def read_caption_table(table: Path) -> dict[str, str]:
    """Captions by video path from a table with a file column and a caption column, checked whole.

    A JSON file is an array of objects, or one object of captions by path. An empty cell, or null, is an empty caption.

    Raises:
        CaptionError: the table is missing, malformed, or lacks one of the two columns; a row names no video, its
            caption is not text or not as `clean_caption` demands; two rows give one video different captions.
    """
    if not is_table(table.name):
        raise CaptionError(
            f"{table}: a caption table is {', '.join(TABLE_SUFFIXES[:-1])} or .parquet, not {table.suffix!r}"
        )
    try:
        content = table_content(table)
    except TableError as error:
        raise CaptionError(f"data.captions: {error}") from error
    try:
        rows = read_table(str(table), content, (FILE_COLUMNS[0], CAPTION_COLUMNS[0]), missing=MISSING)
        columns = [find_column(str(table), rows, names) for names in (FILE_COLUMNS, CAPTION_COLUMNS)]
    except TableError as error:
        raise CaptionError(str(error)) from error
    if not rows:
        raise CaptionError(f"{table}: the caption table is empty")
    file_column, caption_column = columns
    if file_column is None or caption_column is None:
        raise CaptionError(
            f"{table}: it needs a column named one of {', '.join(FILE_COLUMNS)} and one named one of "
            f"{', '.join(CAPTION_COLUMNS)}; it has {column_names(rows[0][1])}"
        )
    captions: dict[str, str] = {}
    row_of: dict[str, int] = {}
    for number, row in rows:
        name, caption = _caption_of_row(f"{table}, row {number}", row, file_column, caption_column)
        if captions.get(name, caption) != caption:
            raise CaptionError(
                f"{table}, rows {row_of[name]} and {number}: both name {quoted(name)}, with different captions; "
                f"keep one of them"
            )
        captions[name] = caption
        row_of.setdefault(name, number)
    return captions


def _caption_of_row(where: str, row: Row, file_column: str, caption_column: str) -> tuple[str, str]:
    file, caption = row.get(file_column), row.get(caption_column, MISSING)
    if file is MISSING or caption is MISSING:
        raise CaptionError(
            f"{where}: it has no {file_column if file is MISSING else caption_column}; add it, or remove the row"
        )
    if not isinstance(file, str) or not file:
        raise CaptionError(f"{where}: {file_column} is {quoted(file)}; it must name a video")
    if any(unicodedata.category(character) == "Cs" for character in file):
        raise CaptionError(f"{where}: {file_column} is {quoted(file)}, which is not valid Unicode; correct the name")
    return clean_file_name(file), check_caption_value(where, caption_column, caption) or ""


@dataclass(frozen=True)
class VideoPlace:
    """Where a video is, and so what a caption table may call it."""

    folder: Path  # that relative names begin in
    file: str  # its path within the folder; printable
    path: str  # its absolute path or its URI
    has_caption: bool = False  # of data.source, which comes before that of the table


@dataclass(frozen=True)
class TableMatch:
    """How a caption table fits a list of videos."""

    num_matched: int  # videos that have a caption from the table
    num_videos: int
    unused: tuple[str, ...]  # names in the table that mean no video
    near: tuple[tuple[str, str], ...]  # some of them, each with the nearest name of a video without a caption
    shared_names: frozenset[str]  # names in the table that several videos have as their file name
    num_empty: int = 0  # of the matched ones, videos whose caption is empty
    num_kept: int = 0  # videos that keep the caption of data.source

    def __str__(self) -> str:
        text = f"{self.num_matched} of {self.num_videos} videos have a caption from the table"
        if self.num_empty:
            text += f", which is empty for {self.num_empty} of them"
        if self.num_kept:
            text += f"; {self.num_kept} videos keep the caption of data.source"
        if self.unused:
            text += f"; {len(self.unused)} of its rows match no video"
        shown = ", ".join(f"{quoted(name)} (nearest: {quoted(video)})" for name, video in self.near)
        return f"{text}, such as {shown}" if shown else text


def match_table(where: Path, table: dict[str, str], videos: Sequence[VideoPlace]) -> TableMatch:
    """Compare a caption table with the videos that it is for.

    A video that is listed several times, as parts of a mix may overlap, is one video.

    Args:
        where: the table, for messages.

    Raises:
        CaptionError: no row means a video, one row means several, or two rows give one video different captions.
    """
    groups: dict[str, list[VideoPlace]] = {}
    for key, place in dict.fromkeys(zip(video_keys(place.path for place in videos), videos, strict=True)):
        groups.setdefault(key, []).append(place)
    counts = Counter(name for group in groups.values() for name in {Path(place.file).name for place in group})
    shared = frozenset(name for name, count in counts.items() if count > 1 and name in table)
    exact = {clean_file_name(place.file): key for key, group in groups.items() for place in group}
    used: dict[str, str] = {}  # the video that a row means, by its key
    unmatched: list[str] = []
    num_matched = num_empty = num_kept = 0
    for key, group in groups.items():
        rows_of = {place: _rows_of(where, table, place, shared, exact, key) for place in group}
        for row in dict.fromkeys(row for rows in rows_of.values() for row in rows):
            if used.setdefault(row, key) != key:
                raise CaptionError(
                    f"{where}: {quoted(row)} means several videos, {quoted(groups[used[row]][0].file)} and "
                    f"{quoted(group[0].file)} of {group[0].folder}; write it with the folder before it"
                )
        open_places = [place for place in group if not place.has_caption]
        without = [place.file for place in open_places if not rows_of[place]]
        unmatched += without[:1]
        num_kept += not open_places
        if open_places and not without:
            num_matched += 1
            num_empty += any(not table[rows_of[place][0]].strip() for place in open_places)
    unused = tuple(name for name in table if name not in used)
    ambiguous = next((name for name in unused if name in shared), None)
    if ambiguous is not None:
        same = next(place.file for group in groups.values() for place in group if Path(place.file).name == ambiguous)
        raise CaptionError(
            f"{where}: {quoted(ambiguous)} may mean {counts[ambiguous]} videos, such as {quoted(same)}; write the path"
        )
    near = _nearest(unused[:MAX_SHOWN_ROWS], unmatched)
    match = TableMatch(num_matched, len(groups), unused, near, shared, num_empty, num_kept)
    if groups and not used:
        raise CaptionError(f"{where}: {match}; write each name as the path of the video within data.source")
    return match


def _rows_of(
    where: Path, table: dict[str, str], place: VideoPlace, shared: Collection[str], exact: dict[str, str], key: str
) -> list[str]:
    """The names in the table that mean a video, the preferred one first.

    Args:
        shared: as for `find_in_table`.
        exact: the key of the video that has a name as its path within its folder; such a name means no other video that
            has a row of its own.
        key: of the video.

    Raises:
        CaptionError: their captions differ.
    """
    rows = [name for name in names_of(place.folder, place.file, place.path, shared) if name in table]
    if rows and rows[0] == clean_file_name(place.file):
        rows = [rows[0], *(name for name in rows[1:] if exact.get(name, key) == key)]
    other = next((name for name in rows if table[name] != table[rows[0]]), None)
    if other is not None:
        raise CaptionError(
            f"{where}: {quoted(rows[0])} and {quoted(other)} are one video, {quoted(place.file)}, with different "
            f"captions; keep one of them"
        )
    return rows


def _nearest(names: Iterable[str], videos: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each name with the video whose name is most like it, where there is one."""
    plain = {_plain_name(video): video for video in reversed(videos)}
    compared = list(plain)[-MAX_COMPARED_NAMES:]
    near = []
    for name in names:
        wanted = _plain_name(name)
        close = [wanted] if wanted in plain else get_close_matches(wanted, compared, n=1, cutoff=0.0)
        near += [(name, plain[match]) for match in close]
    return tuple(near)


def _plain_name(name: str) -> str:
    """A file name without what near misses differ in: folders, suffix, case, spaces and the form of Unicode."""
    return Path(unicodedata.normalize("NFC", name).strip().lower()).stem.strip()
