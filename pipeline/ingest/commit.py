"""A shard of clips is written and committed: from clips that were just cut, and from those that earlier shards hold."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.curation.config import FilterConfig
from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.files.publish import publish_text
from pipeline.ingest.duplicates import Dropped, kept_clips
from pipeline.ingest.reports import SourceReport, StoredReport
from pipeline.ingest.spool import Clips
from pipeline.ingest.thresholds import stored_measures
from pipeline.run.commits import Commit, commit_path, read_commit, remove_commit, writing
from pipeline.run.fingerprints import fingerprint_of_encoded
from pipeline.run.shared_files import RunFiles

logger = logging.getLogger(__name__)


class ShardCommit(Commit):
    """The commit of a shard of clips, made from its sources, their captions and the settings."""

    reports: list[SourceReport]  # what became of each source, whatever other sources there are

    def keys_and_captions(self) -> tuple[dict[str, set[str]], dict[str, str]]:
        """Keys of the clips of each source in the shard, and their caption; nothing of a source without clips there."""
        keys: dict[str, set[str]] = {}
        captions: dict[str, str] = {}
        for row in self.rows:
            keys.setdefault(row.source, set()).add(row.key)
            captions[row.source] = row.caption
        return keys, captions


@dataclass(frozen=True)
class ShardRecipe:
    """What a shard is written from."""

    path: Path
    reports: tuple[StoredReport, ...]
    """Of its sources, in order."""
    dropped: Dropped
    """Their clips that the shard does not hold."""
    taken: Mapping[str, Path]
    """Source whose clips are not cut again -> the shard that holds them."""
    captions: Mapping[str, str]
    """Of the sources that are taken."""
    filters: FilterConfig
    """Which say what the records of clips store."""

    @cached_property
    def made_from(self) -> str:
        """Input fingerprint of its commit: of what each report was made from."""
        return fingerprint_of_encoded(report.inputs for report in self.reports)


class _TakenShardError(Exception):
    """A shard that clips should be taken from cannot be read."""

    def __init__(self, shard: Path, problem: str) -> None:
        super().__init__(problem)
        self.shard = shard


def commit_shard(files: RunFiles, recipe: ShardRecipe, *clips: Clips) -> None:
    """Write a shard, then its commit. Runs in a worker, which gets new clips from Ray's object store.

    If a shard that clips are taken from is damaged, nothing is written, and that shard loses its commit: its sources
    are cut again.

    Args:
        clips: of each source that was just cut and has any.

    Raises:
        ShardWriteError: the disk is full, for example.
    """
    for taken in dict.fromkeys(recipe.taken.values()):
        files.fetch(taken, commit_path(taken))
    new = {source.records[0].source: source for source in clips}
    samples = _samples(recipe, new)
    try:
        with writing(recipe.path):
            shard, rows = write_shard(recipe.path, samples, VIDEO_MEMBER, partial(remove_commit, recipe.path))
            commit = ShardCommit(input_fingerprint=recipe.made_from, shard=shard, rows=rows, reports=[])
            publish_text(commit_path(recipe.path), _with_reports(commit, recipe.reports))
        files.publish(recipe.path, record=commit_path(recipe.path))
    except _TakenShardError as error:
        logger.warning("%s; its sources are cut again", error)
        files.remove(commit_path(error.shard))
    for source in clips:
        source.remove()


def _with_reports(commit: ShardCommit, reports: Iterable[StoredReport]) -> str:
    """The JSON of a commit with these reports, its last field, in place of none."""
    before = commit.model_dump_json().removesuffix("[]}")
    return f"{before}[{','.join(report.content for report in reports)}]}}"


def _samples(recipe: ShardRecipe, new: Mapping[str, Clips]) -> Iterator[tuple[ClipRecord, bytes]]:
    """Records and payloads, in the order of the reports."""
    held = {path: _HeldShard(path) for path in dict.fromkeys(recipe.taken.values())}
    for report in (stored.read() for stored in recipe.reports if stored.has_clips):
        kept = {clip.key for clip in kept_clips(report, recipe.dropped)}
        path = recipe.taken.get(report.source)
        if path is None:
            yield from (clip for clip in new.get(report.source, ()) if clip[0].key in kept)
            continue
        measured = {span.start_seconds: stored_measures(span, recipe.filters) for span in report.measured}
        for clip in report.clips:
            if clip.key in kept:
                record, payload = held[path].clip(clip.key)
                present: dict[str, Any] = {"caption": recipe.captions[report.source]}
                if clip.start_seconds in measured:  # otherwise an older version made it, with the same filters
                    present["measures"] = measured[clip.start_seconds]
                yield record.model_copy(update=present), payload


class _HeldShard:
    """A committed shard that clips are taken from."""

    def __init__(self, path: Path) -> None:
        commit = read_commit(ShardCommit, path)
        if commit is None:
            raise _TakenShardError(path, f"{path} has lost its commit")
        self._path, self._rows = path, {row.key: row for row in commit.rows}
        self._payloads, self._records = PayloadReader(path.parent, verify=True), PayloadReader(path.parent)

    def clip(self, key: str) -> tuple[ClipRecord, bytes]:
        """A clip as it is there.

        The payload is compared with its checksum, the record with what the commit says of the clip.
        """
        row = self._rows[key]
        of_record = replace(row, offset=row.record_offset, size=row.record_size)
        try:
            payload = self._payloads.read(row)
            record = ClipRecord.model_validate_json(self._records.read(of_record))
        except (DatasetError, OSError, ValidationError) as error:
            raise _TakenShardError(self._path, f"{self._path}: {key} cannot be read ({error})") from error
        if any(getattr(record, name) != getattr(row, name) for name in ClipRecord.model_fields if hasattr(row, name)):
            raise _TakenShardError(self._path, f"{self._path}: the record of {key} is damaged")
        return record, payload
