"""Where captions come from: a table, a sidecar file beside the video, or the name of its folder."""

import json
import unicodedata
from pathlib import Path

from data.errors import ReelflowError
from data.files.tables import TableError, read_table

FILE_COLUMNS = ("file", "path", "video", "source")
CAPTION_COLUMNS = ("caption", "text", "prompt", "label")
CAPTION_TABLE_SUFFIXES = (".csv", ".jsonl", ".json")
MAX_CAPTION_CHARACTERS = 4096
MAX_SIDECAR_BYTES = 2**16


class CaptionError(ReelflowError, ValueError):
    """A caption, caption table or sidecar file that cannot be used."""


def read_caption_table(table: Path) -> dict[str, str]:
    """Captions by video path from a CSV, JSONL or JSON file with a file column and a caption column.

    A JSON file is an array of objects, or one object of captions by path.

    Raises:
        CaptionError: the table is missing, malformed, or lacks one of the two columns.
    """
    if not table.is_file():
        raise CaptionError(f"{table}: there is no such caption table")
    if table.suffix not in CAPTION_TABLE_SUFFIXES:
        raise CaptionError(f"{table}: a caption table is .csv, .jsonl or .json, not {table.suffix!r}")
    try:
        rows = read_table(str(table), table.read_bytes(), pair_columns=(FILE_COLUMNS[0], CAPTION_COLUMNS[0]))
    except TableError as error:
        raise CaptionError(str(error)) from error
    if not rows:
        raise CaptionError(f"{table}: the caption table is empty")
    columns = [str(column) for column in rows[0][1]]
    file_column = next((name for name in FILE_COLUMNS if name in columns), None)
    caption_column = next((name for name in CAPTION_COLUMNS if name in columns), None)
    if file_column is None or caption_column is None:
        raise CaptionError(
            f"{table}: it needs a column named one of {', '.join(FILE_COLUMNS)} and one named one of "
            f"{', '.join(CAPTION_COLUMNS)}; it has {', '.join(columns) or 'none'}"
        )
    return {clean_file_name(str(row.get(file_column) or "")): str(row.get(caption_column) or "") for _, row in rows}


def clean_file_name(name: str) -> str:
    """A path with forward slashes and without a leading './'."""
    return name.replace("\\", "/").removeprefix("./")


def caption_of(source_dir: Path, source: str, table: dict[str, str]) -> str:
    """The caption of the video at `source` (relative to `source_dir`), from the first of these that has one.

    The table (by the path, then by its trailing parts), `name.txt`, `name.json`, the name of the folder.

    Raises:
        CaptionError: a sidecar exists but cannot be read, or as `clean_caption`.
    """
    caption = _from_table(source_dir, source, table)
    if caption is None:
        caption = _from_sidecar(source_dir / source)
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


def _from_table(source_dir: Path, source: str, table: dict[str, str]) -> str | None:
    """The caption in the table, whose paths may be relative to a folder above or below `source_dir`.

    The path is tried as given, then with more and more of its parent folders before it, then the file name alone.
    """
    parts = (*source_dir.resolve().parts[1:], *source.split("/"))
    for start in range(len(parts) - len(source.split("/")), -1, -1):
        caption = table.get("/".join(parts[start:]))
        if caption is not None:
            return caption
    return table.get(Path(source).name)


def sidecars(video: Path) -> tuple[Path, Path]:
    """Paths of the sidecar files of a video: plain text, and a JSON object with the key `caption`."""
    return video.with_suffix(".txt"), video.with_suffix(".json")


def _from_sidecar(video: Path) -> str | None:
    text, record = sidecars(video)
    for sidecar in (text, record):
        if sidecar.is_file() and sidecar.stat().st_size > MAX_SIDECAR_BYTES:
            size = sidecar.stat().st_size
            raise CaptionError(f"its sidecar {sidecar.name} has {size} bytes, more than {MAX_SIDECAR_BYTES}")
    try:
        if text.is_file():
            return text.read_text(encoding="utf-8")
        if record.is_file():
            content = json.loads(record.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or not isinstance(content.get("caption"), str):
                raise CaptionError(f"its sidecar {record.name} has no text under the key 'caption'")
            return content["caption"]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CaptionError(f"its sidecar cannot be read: {error}") from error
    return None
