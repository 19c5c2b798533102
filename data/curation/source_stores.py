"""Sources in object stores and on other file systems that a URI names."""

import glob
import logging
import os
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from data.curation.folders import FoundFiles
from data.curation.listing import count_listing, log_listing
from data.curation.sidecars import SIDECAR_SUFFIXES
from data.curation.source import Listing, Source, SourceError, source_filesystem
from data.curation.source_folders import ledger_names
from data.files.locations import ASK, LOCAL_SCHEME, client_errors

logger = logging.getLogger(__name__)


def list_uri(place: str, suffixes: frozenset[str]) -> Listing:
    """Every video at a URI: a folder, a file or a glob."""
    with opened_place(place) as (files, root):
        # With details, which would otherwise take a request per object.
        found: Any = files.glob(root, detail=True) if glob.has_magic(root) else files.find(root, detail=True)
    videos = sorted(name for name in found if PurePosixPath(name).suffix.lower() in suffixes)
    if not videos:
        raise SourceError(f"{place} holds no video; a video ends in one of {' '.join(sorted(suffixes))}")
    parts = PurePosixPath(root).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    base = PurePosixPath(*parts[:plain])
    relative = {
        PurePosixPath(name).relative_to(base).as_posix() if name != str(base) else base.name: name for name in videos
    }
    sources = []
    for path, name in ledger_names(list(relative)).items():
        stored = relative[path]
        uri, stamp = str(files.unstrip_protocol(stored)), sha256(str(found[stored]).encode()).hexdigest()
        root_name = Path(base.name)
        sources.append(Source(name, uri, file=name, root=root_name, stamp=stamp, may_have_sidecar=False))
    _warn_of_sidecars(place, videos, found)
    counts = count_listing(found, videos, FoundFiles())
    log_listing(place, len(videos), counts, FoundFiles())
    return Listing(sources, counts)


def _warn_of_sidecars(place: str, videos: Iterable[str], found: Container[str]) -> None:
    """Say how many sidecars in a store are not read: only those beside videos on a local disk are."""
    stems = {str(PurePosixPath(name).with_suffix("")) for name in videos}
    unread = sum(stem + suffix in found for stem in stems for suffix in SIDECAR_SUFFIXES)
    if unread:
        logger.warning(
            "%s: %d sidecars beside the videos are not read, as they are not on a local disk; put their captions in a "
            "table and name it in data.captions",
            *(place, unread),
        )


def local_path(uri: str, where: str) -> str:
    """The absolute path that a `file://` URI stands for."""
    path = uri.removeprefix(LOCAL_SCHEME)
    if not path:
        raise SourceError(f"{where}: {uri} names no file or folder; write file:///absolute/path")
    return os.fspath(Path(path).absolute())


@contextmanager
def opened_place(uri: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The file system of a URI and the path in it; errors within the block become `SourceError`.

    Raises:
        SourceError: the store cannot be reached, denies access, or has no such file.
    """
    files, path = source_filesystem(uri, "data.source")
    files.invalidate_cache()  # listings cached earlier in this process
    try:
        yield files, path
    except FileNotFoundError as error:
        raise SourceError(f"data.source: {uri} is not there ({error}); {ASK}") from error
    except (OSError, *client_errors(uri)) as error:
        raise SourceError(f"data.source: {uri} cannot be read ({error}); {ASK}") from error
