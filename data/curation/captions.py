"""Where captions come from: a table, a sidecar file beside the video, or the name of its folder."""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from stat import S_ISREG

from data.errors import ReelflowError, printable, quoted
from data.files.tables import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    TABLE_SUFFIXES,
    Row,
    TableError,
    find_column,
    is_table,
    plain_column,
    read_table,
)
from data.files.text import TextError, decode_json, decode_text

MAX_CAPTION_CHARACTERS = 4096
MAX_SIDECAR_BYTES = 2**16
MAX_COMPARED_NAMES = 1000  # that the nearest name is looked for among
MAX_SHOWN_ROWS = 3


class CaptionError(ReelflowError, ValueError):
    """A caption, caption table or sidecar file that cannot be used."""


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
    if not table.is_file():
        raise CaptionError(f"{table}: there is no such caption table")
    try:
        rows = read_table(str(table), table.read_bytes(), pair_columns=(FILE_COLUMNS[0], CAPTION_COLUMNS[0]))
        columns = [find_column(str(table), rows, names) for names in (FILE_COLUMNS, CAPTION_COLUMNS)]
    except TableError as error:
        raise CaptionError(str(error)) from error
    if not rows:
        raise CaptionError(f"{table}: the caption table is empty")
    file_column, caption_column = columns
    if file_column is None or caption_column is None:
        raise CaptionError(
            f"{table}: it needs a column named one of {', '.join(FILE_COLUMNS)} and one named one of "
            f"{', '.join(CAPTION_COLUMNS)}; it has {', '.join(rows[0][1]) or 'none'}"
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
    file, caption = row.get(file_column), row.get(caption_column)
    if not isinstance(file, str) or not file:
        raise CaptionError(f"{where}: {file_column} is {quoted(file)}; it must name a video")
    if any(unicodedata.category(character) == "Cs" for character in file):
        raise CaptionError(f"{where}: {file_column} is {quoted(file)}, which is not valid Unicode; correct the name")
    if caption_column not in row:
        raise CaptionError(f"{where}: it has no {caption_column}; add it, or remove the row")
    return clean_file_name(file), check_caption_value(where, caption_column, caption) or ""


def check_caption_value(where: str, column: str, caption: object) -> str | None:
    """The caption of a row as it stands in the table, None if it is empty.

    Args:
        where: the table and the row, for the message.

    Raises:
        CaptionError: it is not text, or not as `clean_caption` demands.
    """
    if caption is None:
        return None
    if not isinstance(caption, str):
        raise CaptionError(f"{where}: {column} is {quoted(caption)}; it must be text, in JSON within double quotes")
    try:
        clean_caption(caption)
    except CaptionError as error:
        raise CaptionError(f"{where}: {error}; correct the row") from error
    return caption or None


def clean_file_name(name: str) -> str:
    """A path with forward slashes and without a leading './'."""
    return name.replace("\\", "/").removeprefix("./")


def caption_of(
    source_dir: Path,
    source: str,
    table: dict[str, str],
    shared_names: Collection[str] = (),
    video: Path | None = None,
) -> str:
    """The caption of the video at `source` (relative to `source_dir`), from the first of these that has one.

    The table (`find_in_table`), `name.txt`, `name.json`, the name of the folder.

    Args:
        shared_names: as for `find_in_table`.
        video: the path of the video, if it is not `source_dir / source`: names in the ledger are printable, paths may
            not be.

    Raises:
        CaptionError: a sidecar exists but cannot be read, or as `clean_caption`.
    """
    row = find_in_table(source_dir, source, table, shared_names)
    caption = None if row is None else table[row]
    if caption is None:
        caption = _from_sidecar(source_dir / source if video is None else video)
    if caption is None:
        folder = Path(source).parent.name or source_dir.resolve().name
        caption = folder.replace("_", " ").replace("-", " ")
    return clean_caption(caption)


def clean_caption(caption: str) -> str:
    """The caption as one line with single spaces.

    Raises:
        CaptionError: it has more than `MAX_CAPTION_CHARACTERS` characters or contains control characters.
    """
    caption = " ".join(caption.split())
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise CaptionError(f"its caption has {len(caption)} characters, more than {MAX_CAPTION_CHARACTERS}")
    strange = next((character for character in caption if unicodedata.category(character) in ("Cc", "Cs")), None)
    if strange is not None:
        raise CaptionError(f"its caption contains the control character U+{ord(strange):04X}")
    return caption


def find_in_table(
    source_dir: Path, source: str, table: Collection[str], shared_names: Collection[str] = ()
) -> str | None:
    """The name in the table that means the video; names may be relative to a folder above or below `source_dir`.

    The path is tried as given, then with more and more of its parent folders before it, then the file name alone.

    Args:
        shared_names: file names that several videos have, which alone mean none of them.
    """
    parts = (*source_dir.resolve().parts[1:], *source.split("/"))
    tried = ["/".join(parts[start:]) for start in range(len(parts) - len(source.split("/")), -1, -1)]
    tried += [f"/{tried[-1]}"]
    if Path(source).name not in shared_names:
        tried.append(Path(source).name)
    return next((name for name in map(clean_file_name, tried) if name in table), None)


@dataclass(frozen=True)
class TableMatch:
    """How a caption table fits a list of videos."""

    num_matched: int  # videos that have a caption from the table
    num_videos: int
    unused: tuple[str, ...]  # names in the table that mean no video
    near: tuple[tuple[str, str], ...]  # some of them, each with the nearest name of a video without a caption
    shared_names: frozenset[str]  # names in the table that several videos have as their file name

    def __str__(self) -> str:
        text = f"{self.num_matched} of {self.num_videos} videos have a caption from the table"
        if self.unused:
            text += f"; {len(self.unused)} of its rows match no video"
        shown = ", ".join(f"{quoted(name)} (nearest: {quoted(video)})" for name, video in self.near)
        return f"{text}, such as {shown}" if shown else text


def match_table(where: Path, table: dict[str, str], videos: Sequence[tuple[Path, str]]) -> TableMatch:
    """Compare a caption table with the videos that it is for.

    Args:
        where: the table, for messages.
        videos: the folder and the path within it of each video.

    Raises:
        CaptionError: no video has a caption from the table, or one row means several videos.
    """
    different = dict.fromkeys(videos)
    counts = Counter(Path(source).name for _, source in different)
    shared = frozenset(name for name, count in counts.items() if count > 1 and name in table)
    used: dict[str, str] = {}
    unmatched = []
    for folder, source in different:
        row = find_in_table(folder, source, table, shared)
        if row is None:
            unmatched.append(source)
        elif row in used:
            raise CaptionError(
                f"{where}: {quoted(row)} means several videos, {quoted(used[row])} and {quoted(source)} "
                f"of {folder}; write it with the folder before it"
            )
        else:
            used[row] = source
    unused = tuple(name for name in table if name not in used)
    for name in unused:
        if name in shared:
            same = [source for source in unmatched if Path(source).name == name]
            raise CaptionError(
                f"{where}: {quoted(name)} may mean {counts[name]} videos, such as {quoted(same[0])}; write the path"
            )
    near = _nearest(unused[:MAX_SHOWN_ROWS], unmatched)
    match = TableMatch(len(used), len(different), unused, near, shared)
    if different and not used:
        raise CaptionError(f"{where}: {match}; write each name as the path of the video within data.source")
    return match


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


def sidecars(video: Path) -> tuple[Path, Path]:
    """Paths of the sidecar files of a video: plain text, and a JSON object with a key of `CAPTION_COLUMNS`.

    The suffix is in upper case where only such a file exists.
    """
    text, record = (
        upper if os.path.lexists(upper) and not os.path.lexists(lower) else lower
        for lower, upper in (
            (video.parent / f"{video.stem}{suffix}", video.parent / f"{video.stem}{suffix.upper()}")
            for suffix in (".txt", ".json")
        )
    )
    return text, record


def _is_regular(path: Path) -> bool:
    """Whether there is a regular file at a path.

    Raises:
        OSError: this cannot be found out; a name that is too long for a file is no error.
    """
    try:
        return S_ISREG(path.stat().st_mode)
    except ValueError:  # a null character, or half of a surrogate pair
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return False
        raise


def _from_sidecar(video: Path) -> str | None:
    for sidecar in sidecars(video):
        if not _is_regular(sidecar):
            continue
        name, size = printable(sidecar.name), sidecar.stat().st_size
        if size > MAX_SIDECAR_BYTES:
            raise CaptionError(f"its sidecar {name} has {size} bytes, more than {MAX_SIDECAR_BYTES}")
        try:
            text = decode_text(sidecar.read_bytes())
            return _caption_of_record(name, text) if sidecar.suffix.lower() == ".json" else text
        except TextError as error:
            raise CaptionError(f"its sidecar {name} cannot be read: {error}") from error
    return None


def _caption_of_record(name: str, text: str) -> str:
    content = decode_json(text)
    record = {plain_column(key): value for key, value in content.items()} if isinstance(content, dict) else {}
    caption = next((record[column] for column in CAPTION_COLUMNS if column in record), None)
    if not isinstance(caption, str):
        raise CaptionError(f"its sidecar {name} has no text under the key 'caption'")
    return caption
