"""The sources at a place: the videos that clips are made from, each with a name and a path or URI.

`data.source` is one of

    folder/                          every video below it
    folder/**/*.mp4                  a glob
    table.csv, .tsv, .jsonl,         columns path and optionally caption, start, end (seconds); the names that the
      .json, .parquet                columns may have are in data/files/tables.py
    s3://bucket/videos               a folder, file, glob or table on any file system in SCHEMES, opened by fsspec
"""

import glob
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from data.curation.source import Listing, Source
from data.curation.source_folders import list_below, list_glob
from data.curation.source_stores import list_uri, local_path
from data.curation.source_tables import list_stored_table, list_table
from data.files.locations import LOCAL_SCHEME
from data.files.tables import is_table
from data.video.formats import VIDEO_SUFFIXES


def list_sources(place: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> list[Source]:
    """The sources of `list_place`."""
    return list_place(place, suffixes).sources


def list_place(place: str, suffixes: frozenset[str] = VIDEO_SUFFIXES) -> Listing:
    """Every source at a place; what else was found there is logged in one line.

    Args:
        suffixes: of the files that folders and globs are searched for.

    Raises:
        SourceError: there is none, or the place cannot be read.
    """
    if place.startswith(LOCAL_SCHEME):
        place = local_path(place, "data.source")
    if "://" in place:
        if is_table(place) and not glob.has_magic(place):
            return Listing(list_stored_table(place))
        return list_uri(place, suffixes)
    path = Path(place)
    if is_table(path.name) and not os.path.isdir(path):  # noqa: PTH112 - it never raises
        return Listing(list_table(path))
    if glob.has_magic(place) and not os.path.exists(path):  # noqa: PTH110 - it never raises
        return list_glob(place, suffixes)
    return list_below(path, suffixes)


def of_dataset(name: str, sources: Iterable[Source]) -> list[Source]:
    """The sources as a dataset of a mix: their names get the prefix `name/`."""
    return [replace(source, name=f"{name}/{source.name}", dataset=name) for source in sources]
