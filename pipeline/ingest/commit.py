"""A shard of clips is written and committed: from clips that were just cut, and from those that earlier shards hold."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.index import IndexRow
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from pipeline.ingest.prepare import Clips, SourceReport
from pipeline.run.commits import Commit, publish_commit, read_commit, remove_commit
from pipeline.run.fingerprints import fingerprint

logger = logging.getLogger(__name__)


class ShardCommit(Commit):
    """The commit of a shard of clips, made from its sources, their captions and the settings."""

    reports: list[SourceReport]  # what became of each source, whatever other sources there are


@dataclass(frozen=True)
class ShardRecipe:
    """What a shard is written from."""

    path: Path
    reports: tuple[SourceReport, ...]
    """Of its sources, in order."""
    kept: frozenset[str]
    """Keys of their clips that the shard holds."""
    taken: Mapping[str, Path]
    """Source whose clips are not cut again -> the shard that holds them."""
    captions: Mapping[str, str]
    """Of the sources that are taken."""


def commit_shard(recipe: ShardRecipe, *clips: list[Clips]) -> None:
    """Write a shard, then its commit. Runs in a worker, which gets new clips from Ray's object store.

    If a shard that clips are taken from is damaged, nothing is written, and that shard loses its commit: its sources
    are cut again.

    Args:
        clips: of sources that were prepared together, all new ones of this shard among them.
    """
    new = {source[0][0].source: source for batch in clips for source in batch if source}
    try:
        shard, rows = write_shard(recipe.path, _samples(recipe, new), VIDEO_MEMBER, partial(remove_commit, recipe.path))
    except _TakenShardError as error:
        logger.warning("%s; its sources are cut again", error)
        remove_commit(error.shard)
        return
    inputs = fingerprint([report.model_dump(mode="json", include={"source", "origin"}) for report in recipe.reports])
    commit = ShardCommit(input_fingerprint=inputs, shard=shard, rows=rows, reports=list(recipe.reports))
    publish_commit(recipe.path, commit)


class _TakenShardError(Exception):
    """A shard that clips should be taken from cannot be read."""

    def __init__(self, shard: Path, problem: str) -> None:
        super().__init__(problem)
        self.shard = shard


def _samples(recipe: ShardRecipe, new: Mapping[str, Clips]) -> Iterator[tuple[ClipRecord, bytes]]:
    """Records and payloads, in the order of the reports."""
    folder = recipe.path.parent
    reader = PayloadReader(folder, verify=True)
    rows = {path: _rows_of(path) for path in dict.fromkeys(recipe.taken.values())}
    for report in recipe.reports:
        path = recipe.taken.get(report.source)
        if path is None:
            yield from (clip for clip in new.get(report.source, ()) if clip[0].key in recipe.kept)
            continue
        for clip in report.clips:
            if clip.key not in recipe.kept:
                continue
            row = rows[path][clip.key]
            try:
                payload = reader.read(row)
            except (DatasetError, OSError) as error:
                raise _TakenShardError(path, str(error)) from error
            yield _record(row, recipe.captions[report.source]), payload
    reader.close()


def _rows_of(shard: Path) -> dict[str, IndexRow]:
    commit = read_commit(ShardCommit, shard)
    if commit is None:
        raise _TakenShardError(shard, f"{shard} has lost its commit")
    return {row.key: row for row in commit.rows}


def _record(row: IndexRow, caption: str) -> ClipRecord:
    """The record of a clip that the index describes, with its present caption."""
    fields = {name: getattr(row, name) for name in ClipRecord.model_fields if name != "caption"}
    return ClipRecord(**fields, caption=caption)
