"""The names that a caption table may have for a video: its path, parts of it, its URI, or its file name alone."""

import os
import posixpath
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path


def clean_file_name(name: str) -> str:
    """A path with forward slashes, and without the parts `.` and `..` and empty ones; a URI with its scheme.

    A `file://` URI is the path that it stands for.
    """
    name = name.replace("\\", "/").removeprefix("file://")
    scheme, separator, rest = name.partition("://")
    if separator:
        return f"{scheme}://{rest.lstrip('/')}"
    return posixpath.normpath(f"/{name.lstrip('/')}" if name.startswith("/") else name)


def find_in_table(
    source_dir: Path,
    source: str,
    table: Collection[str],
    shared_names: Collection[str] = (),
    path: str | None = None,
) -> str | None:
    """The name in the table that means the video; names may be relative to a folder above or below `source_dir`.

    The path is tried as given, then with more and more of its parent folders before it, then the file name alone.

    Args:
        shared_names: file names that several videos have, which alone mean none of them.
        path: the absolute path of the video, or its URI, which is a name of it too.
    """
    return next((name for name in names_of(source_dir, source, path, shared_names) if name in table), None)


def names_of(folder: Path, file: str, path: str | None, shared_names: Collection[str]) -> list[str]:
    """Every name that a table may have for a video, the preferred one first; arguments as for `find_in_table`."""
    tried = [file]
    if path is not None and "://" in path:
        tried += [*_longer_names(path.partition("://")[2].lstrip("/"), file), path]
    elif file.startswith("/"):
        tried.append(video_keys([file])[0])
    else:
        for base in _bases(folder):
            whole = f"{base}/{file}"
            tried += [*_longer_names(whole, file), f"/{whole}"]
    if Path(file).name not in shared_names:
        tried.append(Path(file).name)
    return list(dict.fromkeys(map(clean_file_name, tried)))


@lru_cache(maxsize=1024)  # otherwise most of the time that a large table takes
def _bases(folder: Path) -> tuple[str, ...]:
    """The absolute path of a folder, without links and as the user wrote it, each without its leading slash."""
    return tuple(dict.fromkeys(path.as_posix().lstrip("/") for path in (folder.resolve(), folder.absolute())))


def _longer_names(whole: str, file: str) -> list[str]:
    """The last parts of a path: as many as `file` has, then one more, and so on."""
    parts = whole.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts) - len(file.split("/")), -1, -1)]


def video_keys(paths: Iterable[str]) -> list[str]:
    """A text for each absolute path or URI, which is the same for all spellings of a path.

    Links to folders are followed. A link to a file is a file of its own, with its own name and caption.
    """
    folders: dict[str, str] = {}
    keys = []
    for path in paths:
        if "://" in path:
            keys.append(clean_file_name(path))
            continue
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _without_links(folder)
        keys.append(os.path.join(folders[folder], name))  # noqa: PTH118 - Path would be slower
    return keys


def _without_links(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a null character, or half of a surrogate pair
        return folder
