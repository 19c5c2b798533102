"""What was found where sources were looked for, beside the sources themselves: counted, so that nothing is silent."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from data.curation.folders import FoundFiles, suffix_of
from data.curation.sidecars import SIDECAR_SUFFIXES
from data.errors import printable
from data.records import Record

MAX_SHOWN_FOLDERS = 3
MAX_SUFFIXES = 20
NO_SUFFIX = "(none)"
OTHER = "(others)"

logger = logging.getLogger(__name__)


class ListingCounts(Record):
    """How much was found beside the sources and is not in the ledger."""

    captions: int = 0  # files with the caption of a source
    files: dict[str, int] = Field(default={})  # that are no video by their suffix, by suffix; the most frequent first
    linked_folders: int = 0  # not searched
    unreadable_folders: int = 0


def count_listing(files: Iterable[str], videos: Iterable[str], found: FoundFiles) -> ListingCounts:
    """The counts of one place.

    Args:
        files: all that were found.
        videos: those of them that are sources.
    """
    sources = set(videos)
    stems = {_stem(video) for video in sources}
    captions, others = 0, Counter[str]()
    for file in files:
        if file in sources:
            continue
        if suffix_of(file) in SIDECAR_SUFFIXES and _stem(file) in stems:
            captions += 1
        else:
            others[printable(suffix_of(file).lower()) or NO_SUFFIX] += 1
    return ListingCounts(
        captions=captions,
        files=_most_frequent(others),
        linked_folders=len(found.linked),
        unreadable_folders=len(found.unreadable),
    )


def _stem(file: str) -> str:
    return file.removesuffix(suffix_of(file))


def add_listings(counts: Iterable[ListingCounts]) -> ListingCounts:
    """The counts of several places together."""
    places = list(counts)
    others = Counter[str]()
    for place in places:
        others.update(place.files)
    return ListingCounts(
        captions=sum(place.captions for place in places),
        files=_most_frequent(others),
        linked_folders=sum(place.linked_folders for place in places),
        unreadable_folders=sum(place.unreadable_folders for place in places),
    )


def _most_frequent(files: Counter[str]) -> dict[str, int]:
    rest = files.pop(OTHER, 0)
    ordered = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    rest += sum(number for _, number in ordered[MAX_SUFFIXES:])
    return dict(ordered[:MAX_SUFFIXES]) | ({OTHER: rest} if rest else {})


def describe_listing(counts: ListingCounts) -> str:
    """The counts in words; empty if there is nothing to tell."""
    files = ", ".join(f"{number} {suffix}" for suffix, number in counts.files.items())
    parts = (
        (counts.captions, f"{counts.captions} caption files"),
        (files, f"{sum(counts.files.values())} files are no videos by their suffix: {files}"),
        (counts.linked_folders, f"{counts.linked_folders} linked folders are not searched"),
        (
            counts.unreadable_folders,
            f"{counts.unreadable_folders} folders cannot be read, and their videos are missing",
        ),
    )
    return "; ".join(text for told, text in parts if told)


def log_listing(place: str, num_videos: int, counts: ListingCounts, found: FoundFiles) -> None:
    """Say in one line what was found beside the videos of a place, as a warning where videos may be missing."""
    told = describe_listing(counts)
    if not told:
        return
    if found.linked:
        told += f"; linked is {_shown(found.linked)}: put the videos there, or name the folder in data.mix"
    if found.unreadable:
        places = [Path(error.filename) for error in found.unreadable]
        told += f"; unreadable is {_shown(places)} ({found.unreadable[0].strerror}): make it readable"
    level = logging.WARNING if found.linked or found.unreadable else logging.INFO
    logger.log(level, "%s: %d videos; %s", printable(place), num_videos, told)


def _shown(paths: list[Path]) -> str:
    names = [printable(os.fspath(path)) for path in sorted(paths)[:MAX_SHOWN_FOLDERS]]
    return ", ".join(names) + (", ..." if len(paths) > MAX_SHOWN_FOLDERS else "")
