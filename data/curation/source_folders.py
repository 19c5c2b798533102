"""Sources in folders of this machine, and those that a glob matches."""

import glob
import os
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from data.curation.folders import FoundFiles, find_files, suffix_of
from data.curation.listing import count_listing, log_listing
from data.curation.sidecars import has_sidecar
from data.curation.source import Listing, Source, SourceError, stamp_of
from data.errors import printable
from data.video.formats import VIDEO_SUFFIXES

ANY_FOLDERS = "**"


def list_folder(folder: Path, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """Every video file below a folder, sorted by its path relative to the folder, which is its name.

    A file that cannot be read is a source too, and ends in quarantine. Linked folders, and folders that cannot be read,
    are not searched; a warning counts and names them.

    Raises:
        SourceError: the folder is missing, empty, cannot be read, or contains no video.
    """
    return list_below(folder, suffixes).sources


def list_below(folder: Path, suffixes: frozenset[str]) -> Listing:
    """As `list_folder`, with what else is there."""
    if not os.path.isdir(folder):  # noqa: PTH112 - it never raises
        raise SourceError(f"{folder} is not a folder; set data.source to a folder of videos")
    found = _find_files(folder)
    if not found.files:
        raise SourceError(f"{folder} is empty; put videos in it or point data.source elsewhere")
    return local_sources(folder, found, str(folder), suffixes)


def _find_files(folder: Path, enters: Callable[[tuple[str, ...]], bool] = lambda _: True) -> FoundFiles:
    try:
        return find_files(folder, enters)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror}); make it readable") from error


def list_glob(pattern: str, suffixes: frozenset[str]) -> Listing:
    """The files that a pattern matches as in the shell, below the folder that it begins with."""
    parts = Path(pattern).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    root, wanted = Path(*parts[:plain]), parts[plain:]
    is_folder = os.path.isdir(root)  # noqa: PTH112 - it never raises
    found = _find_files(root, lambda above: _leads_to(above, wanted)) if is_folder else FoundFiles()
    found.files = [file for file in found.files if _matches(tuple(file.split("/")), wanted)]
    if not found.files:
        raise SourceError(f"{pattern} matches no file; set data.source to a folder, a glob or a table of videos")
    return local_sources(root, found, pattern, suffixes)


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


def local_sources(root: Path, found: FoundFiles, place: str, suffixes: frozenset[str]) -> Listing:
    """The videos among the files that were found at a place; what else is there is logged."""
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
    for file, name in ledger_names(videos).items():
        path = before + file
        with_sidecar = found.sidecars.may_have(file) and has_sidecar(path)
        stamp = stamp_of(path, with_sidecar=with_sidecar)
        sources.append(Source(name, path, file=name, root=folder, stamp=stamp, may_have_sidecar=with_sidecar))
    return Listing(sources, counts)


def ledger_names(paths: list[str]) -> dict[str, str]:
    """The name in the ledger of each path: its printable form, followed by its bytes where that is another's name."""
    shown = [printable(path) for path in paths]
    counts = Counter(shown)
    names = {}
    for path, name in zip(paths, shown, strict=True):
        is_shared = name != path and counts[name] > 1
        names[path] = f"{name}#bytes={os.fsencode(path).hex()}" if is_shared else name
    return names
