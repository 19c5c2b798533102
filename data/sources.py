"""What there is to make clips from: a list of sources, each with a name and a place."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from data.video import VIDEO_SUFFIXES


class SourceError(ValueError):
    """Sources there is nothing to make clips from; the message names the place and the way out."""


@dataclass(frozen=True)
class Source:
    """One line of the ledger."""

    name: str  # what the ledger calls it; unique
    path: str  # absolute


def list_folder(folder: Path) -> list[Source]:
    """Every video file below a folder, sorted by its path relative to it, which is its name.

    Raises:
        SourceError: the folder is missing, empty, or holds no video.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; set data.source to a folder of videos")
    files = [path for path in folder.rglob("*") if path.is_file()]
    videos = {path.relative_to(folder).as_posix(): path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
    if not files:
        raise SourceError(f"{folder} is empty; put videos in it or point data.source elsewhere")
    if not videos:
        found = ", ".join(sorted({path.suffix.lower() or path.name for path in files})[:5])
        raise SourceError(
            f"{folder} holds {len(files)} files ({found}) but no video; a video ends in one of "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return [Source(name, os.fspath(videos[name].absolute())) for name in sorted(videos)]


def source_fingerprint(sources: Sequence[Source]) -> str:
    """Changes when a file is added, removed, resized or rewritten."""
    digest = sha256()
    for source in sources:
        stat = Path(source.path).stat()
        digest.update(f"{source.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
