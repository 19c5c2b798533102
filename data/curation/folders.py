"""What lies below a folder: its files, and the folders that are not searched."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.curation.sidecars import SidecarNames


@dataclass
class FoundFiles:
    """Everything below a folder that is not a folder itself, and the folders that were not searched."""

    files: list[str] = field(default_factory=list)
    """Paths relative to the folder."""
    sidecars: SidecarNames = field(default_factory=SidecarNames)
    """By the same paths."""
    linked: list[Path] = field(default_factory=list)
    """Links to folders. They may lead back to a folder above, or to videos that are found anyway."""
    unreadable: list[OSError] = field(default_factory=list)
    """Errors of the folders that cannot be read, each with its name."""


def suffix_of(name: str) -> str:
    """As `PurePath.suffix` of a name or path, without making a path for each of many files."""
    name = name.rpartition("/")[2]
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""


def find_files(folder: Path, enters: Callable[[tuple[str, ...]], bool] = lambda _: True) -> FoundFiles:
    """Search a folder; links to files are followed, links to folders are not.

    Args:
        enters: whether a folder, given as the parts of its path below `folder`, is searched at all.

    Raises:
        OSError: `folder` itself cannot be read.
    """
    found = FoundFiles()
    for place, folders, names in os.walk(folder, onerror=found.unreadable.append):
        above = Path(place).relative_to(folder).parts
        inside = "/".join(above)
        found.sidecars.add(inside, (*names, *folders))
        found.files += [f"{inside}/{name}" for name in names] if inside else names
        folders[:] = [name for name in folders if enters((*above, name))]
        found.linked += [Path(place, name) for name in folders if os.path.islink(Path(place, name))]  # noqa: PTH114 - it never raises
    for error in found.unreadable:
        if error.filename == os.fspath(folder):
            raise error
    return found
