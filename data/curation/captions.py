"""The caption of a video: from a table, a sidecar file beside the video, or the name of its folder."""

import errno
import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG

from data.curation.caption_names import find_in_table
from data.curation.caption_text import CaptionError, clean_caption
from data.curation.sidecars import has_sidecar, sidecars
from data.errors import printable, quoted
from data.files.tables import CAPTION_COLUMNS, plain_column
from data.files.text import TextError, decode_json, decode_text

MAX_SIDECAR_BYTES = 2**16


def caption_of(
    source_dir: Path,
    source: str,
    table: dict[str, str],
    shared_names: Collection[str] = (),
    path: str | None = None,
    *,
    may_have_sidecar: bool = True,
) -> str:
    """The caption of the video at `source` (relative to `source_dir`), from the first of these that has one.

    The table (`find_in_table`), `name.txt`, `name.json`, the name of the folder. Sidecars of a URI are not read.

    Args:
        shared_names: as for `find_in_table`.
        path: the absolute path of the video, or its URI, if it is not `source_dir / source`: names in the ledger are
            printable, paths may not be.
        may_have_sidecar: False: it is known that there is none.

    Raises:
        CaptionError: a sidecar exists but cannot be read, or as `clean_caption`.
    """
    row = find_in_table(source_dir, source, table, shared_names, path) if table else None
    caption = None if row is None else table[row]
    if caption is None and may_have_sidecar and not (path and "://" in path):
        video = os.fspath(source_dir / source) if path is None else path
        caption = _from_sidecar(Path(video)) if has_sidecar(video) else None
    if caption is None:
        return _caption_of_folder(source_dir, source.rpartition("/")[0])
    return clean_caption(caption)


@lru_cache(maxsize=1024)  # a folder holds many videos
def _caption_of_folder(source_dir: Path, folder: str) -> str:
    name = Path(folder).name or source_dir.resolve().name
    return clean_caption(name.replace("_", " ").replace("-", " "))


def _is_regular(path: Path) -> bool:
    """Whether there is a regular file at a path.

    Raises:
        OSError: this cannot be found out; a name that is too long for a file is no error, nor links in a loop.
    """
    try:
        return S_ISREG(path.stat().st_mode)
    except ValueError:  # a null character, or half of a surrogate pair
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return False
        raise


def _from_sidecar(video: Path) -> str | None:
    for sidecar in sidecars(video):
        if not _is_regular(sidecar):
            if os.path.lexists(sidecar):
                raise CaptionError(
                    f"its sidecar {printable(sidecar.name)} is a folder, a pipe or a link to no file; make it a text "
                    f"file, or remove it"
                )
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
    record: dict[str, object] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        column = plain_column(str(key))
        if column in record:
            raise CaptionError(f"its sidecar {name} has the key {quoted(column)} twice, in two spellings; keep one")
        record[column] = value
    caption = next((record[column] for column in CAPTION_COLUMNS if column in record), None)
    if not isinstance(caption, str):
        raise CaptionError(f"its sidecar {name} has no text under the key 'caption'")
    return caption
