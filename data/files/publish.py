"""Atomic publishing: a reader sees the whole file or none.

A file is written under a temporary name in the same folder, flushed with fsync and renamed. A process that is killed at
any point leaves only files named `.tmp-*` behind, which `remove_unpublished` deletes at the next start.
"""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def temporary_sibling(path: Path) -> Path:
    """A new temporary path in the folder of `path`: on the same file system, so that the rename is atomic."""
    return path.parent / f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success rename it to `path`, on an error delete it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with published(path) as temporary:
        temporary.write_bytes(content)


def publish_text(path: Path, content: str) -> None:
    """Write UTF-8 `content` to `path` atomically."""
    publish_bytes(path, content.encode("utf-8"))


def remove_unpublished(folder: Path) -> None:
    """Delete the temporary files and folders that interrupted writers left anywhere below `folder`."""
    for leftover in list(folder.rglob(f"{TEMPORARY_PREFIX}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
