"""Sidecars: files beside a video, of its name and another suffix, that hold its caption."""

import os
from collections.abc import Iterable
from pathlib import Path

SIDECAR_SUFFIXES = (".txt", ".json")


def sidecars(video: Path) -> tuple[Path, Path]:
    """Paths of the sidecar files of a video: plain text, and a JSON object with a key of `CAPTION_COLUMNS`.

    The suffix is in upper case where only such a file exists.
    """
    text, record = map(Path, _sidecar_names(os.fspath(video)))
    return text, record


def has_sidecar(video: str) -> bool:
    """Whether anything lies at the place of a sidecar file of the video at this path."""
    return any(map(os.path.lexists, _sidecar_names(video)))


def _sidecar_names(video: str) -> tuple[str, str]:
    stem = os.path.splitext(video)[0]  # noqa: PTH122 - once for each video, and a Path takes ten times as long
    text, record = (
        upper if os.path.lexists(upper) and not os.path.lexists(lower) else lower
        for lower, upper in ((stem + suffix, stem + suffix.upper()) for suffix in SIDECAR_SUFFIXES)
    )
    return text, record


class SidecarNames:
    """Which videos may have a sidecar by the names in their folders, so that most need no look at the disk.

    Each folder is read once. Case is ignored, as some file systems do, which may also take different spellings of a
    name that is not ASCII for one: where this says that there may be a sidecar, `has_sidecar` has to be asked.
    """

    def __init__(self) -> None:
        self._stems: dict[str, frozenset[str]] = {}  # of what may be sidecars, by folder

    def add(self, folder: str, names: Iterable[str]) -> frozenset[str]:
        """Take the names in a folder from whoever has listed it."""
        texts = (name for name in map(str.casefold, names) if name.endswith(SIDECAR_SUFFIXES))
        self._stems[folder] = frozenset(os.path.splitext(name)[0] for name in texts)  # noqa: PTH122 - as above
        return self._stems[folder]

    def may_have(self, video: str) -> bool:
        """Whether a video, in one of the folders that were added or at a path that can be listed, may have one."""
        folder, _, name = video.rpartition("/")
        if not name.isascii():
            return True
        stems = self._stems.get(folder)
        if stems is None:
            try:
                stems = self.add(folder, os.listdir(folder or "/"))  # noqa: PTH208 - of names, which may be many
            except (OSError, ValueError):  # a null character, or half of a surrogate pair
                return True
        return bool(stems) and os.path.splitext(name)[0].casefold() in stems  # noqa: PTH122 - as above
