"""The shard stage: videos become WebDataset shards of clips.

Sources are assigned to shards in their order, so the same sources always give the same shards. One job prepares one
source (`pipeline/ingest/prepare.py`) in a process that is killed after a timeout; a Ray task writes each shard from the
clips of its sources, which do not pass through the driver. Every source ends in exactly one of shards, filtered and
quarantine (`data/curation/ledger.py`), which is checked at the end.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray

from data.curation.filters import Duplicates
from data.curation.ledger import reject
from data.curation.sources import Source, listing_fingerprint
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.manifest import MANIFEST_NAME, Manifest
from data.dataset.shards import write_shard
from data.files.publish import publish_text, remove_unpublished
from pipeline.distributed.isolated_pool import Done, run_jobs
from pipeline.ingest.buckets import read_choice, settle_buckets
from pipeline.ingest.captions import Captions, read_captions
from pipeline.ingest.close import close_dataset
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import Clips, PrepareConfig, SourceReport, drop_duplicates, prepare_source
from pipeline.run.commits import (
    Commit,
    publish_commit,
    read_commit,
    remove_commit,
    remove_other_shards,
    reusable_commit,
)
from pipeline.run.fingerprints import fingerprint
from pipeline.run.progress import bar

logger = logging.getLogger(__name__)


class ShardCommit(Commit):
    """The commit of a shard of clips, made from its sources, their captions and the settings."""

    reports: list[SourceReport]  # what became of each source


def commit_shard(path: Path, input_fingerprint: str, reports: list[SourceReport], *clips: Clips) -> None:
    """Write a shard, then its commit. Runs in a worker, which gets the clips from Ray's object store."""
    kept = {clip.key for report in reports for clip in report.clips}
    samples = [clip for source in clips for clip in source if clip[0].key in kept]
    remove_commit(path)
    shard, rows = write_shard(path, samples, VIDEO_MEMBER)
    publish_commit(path, ShardCommit(input_fingerprint=input_fingerprint, shard=shard, rows=rows, reports=reports))


def forget_quarantined(output_dir: Path) -> None:
    """Remove the commits of shards with quarantined sources, so that the next start tries those sources again.

    If duplicates are looked for, the commits of all later shards are removed too: the clips that a shard keeps depend
    on the shards before it.
    """
    is_removed = False
    for path in sorted(output_dir.glob("shard-*.tar")):
        commit = read_commit(ShardCommit, path)
        if commit is None:
            continue
        compares = any(clip.perceptual_hash is not None for report in commit.reports for clip in report.clips)
        if (compares and is_removed) or any(report.quarantined is not None for report in commit.reports):
            remove_commit(path)
            (output_dir / MANIFEST_NAME).unlink(missing_ok=True)
            is_removed = True


@dataclass
class _PlannedShard:
    """A planned shard while its sources are being prepared."""

    number: int
    path: Path
    sources: Sequence[Source]
    input_fingerprint: str
    reports: dict[str, SourceReport] = field(default_factory=dict)  # by source
    clips: dict[str, Any] = field(default_factory=dict)  # Ray reference to the clips, by source

    @property
    def is_complete(self) -> bool:
        return len(self.reports) == len(self.sources)

    @property
    def ordered_reports(self) -> list[SourceReport]:
        return [self.reports[source.name] for source in self.sources]

    def commit(self) -> ShardCommit | None:
        """The commit of the shard if it is reusable, otherwise None."""
        return reusable_commit(ShardCommit, self.path, self.input_fingerprint)


def make_shards(sources: Sequence[Source], output_dir: Path, config: ShardConfig, num_workers: int) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that were made from the same inputs are reused.

    Args:
        sources: in the order in which their clips are stored in the shards.

    Raises:
        SourceError: none of the sources can be used.
        CaptionError: the caption table cannot be read, or matches no video.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)  # the folder is not a dataset until all shards are written
    captions = read_captions(config.captions, sources)
    _describe_captions(captions, config.captions)
    buckets = settle_buckets(sources, output_dir, config, num_workers)
    prepare = PrepareConfig(buckets, captions.table, config, captions.shared_names)
    planned = _plan(sources, output_dir.resolve(), prepare)
    _prepare_and_commit(partial(prepare_source, prepare), planned, config, num_workers)
    remove_unpublished(output_dir)  # left by workers that were killed while writing
    remove_other_shards(output_dir, {group.path.name for group in planned})

    commits = (commit for group in planned if (commit := group.commit()) is not None)
    manifest = close_dataset([source.name for source in sources], commits, output_dir)
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _describe_captions(captions: Captions, table: Path | None) -> None:
    """Log how many sources have a caption from the table, and which rows match none."""
    if (match := captions.match) is not None:
        level = logging.WARNING if match.unused or match.num_kept else logging.INFO
        logger.log(level, "%s: %s", table, match)


def _plan(sources: Sequence[Source], output_dir: Path, config: PrepareConfig) -> list[_PlannedShard]:
    """The sources of each shard, and the fingerprint of its inputs."""
    size, settings, before = config.settings.videos_per_shard, config.fingerprint(), ""
    planned = []
    for number, at in enumerate(range(0, len(sources), size)):
        group = sources[at : at + size]
        input_fingerprint = fingerprint([settings, listing_fingerprint(group), before])
        if config.settings.filters.duplicate_bits is not None:
            before = input_fingerprint  # the clips that a shard keeps depend on the shards before it
        planned.append(_PlannedShard(number, output_dir / f"shard-{number:05d}.tar", group, input_fingerprint))
    return planned


def count_reusable_shards(sources: Sequence[Source], output_dir: Path, config: ShardConfig) -> int:
    """Number of shards in a folder that were made from these sources and settings."""
    buckets = config.buckets
    if config.choose_buckets is not None:
        known = read_choice(output_dir, config.choose_buckets)
        if known is None:
            return 0
        buckets = known.buckets
    captions = read_captions(config.captions, sources)
    planned = _plan(sources, output_dir, PrepareConfig(buckets, captions.table, config, captions.shared_names))
    return sum(shard.commit() is not None for shard in planned)


def _prepare_and_commit(
    prepare: partial[tuple[SourceReport, Clips]], planned: list[_PlannedShard], config: ShardConfig, num_workers: int
) -> None:
    """Prepare the sources of every missing shard, and write each shard as soon as it can be (`_CommitOrder`)."""
    committing: Any = ray.remote(commit_shard).options(num_cpus=0)
    committed = {group.number: commit for group in planned if (commit := group.commit()) is not None}
    group_of = {source: group for group in planned if group.number not in committed for source in group.sources}
    num_sources = sum(len(group.sources) for group in planned)
    num_done, num_rejected, commits = num_sources - len(group_of), 0, []
    order = _CommitOrder(planned, committed, config.filters.duplicate_bits)
    with bar("shard", num_sources, "videos", start=num_done) as progress:
        for result in run_jobs(prepare, list(group_of), num_workers, config.decode_timeout_seconds):
            source, group = result.job, group_of[result.job]
            if isinstance(result, Done):
                report, group.clips[source.name] = result.report, result.payload
            else:
                quarantined = reject(source.name, "decode", result.reason, result.detail)
                report = SourceReport(source=source.name, quarantined=quarantined)
            group.reports[source.name] = report
            for due, reports in order.due(group):
                clips = [due.clips[source.name] for source in due.sources if source.name in due.clips]
                commits.append(committing.remote(due.path, due.input_fingerprint, reports, *clips))
                due.clips.clear()
            num_done, num_rejected = num_done + 1, num_rejected + (not report.clips)
            progress.update(num_done, f"{num_rejected} left out" if num_rejected else "")
    ray.get(commits)


class _CommitOrder:
    """Decides which shards can be written now.

    Without a search for duplicates, every complete shard. Otherwise shards are written in their order, because which of
    two duplicate clips is kept must not depend on which was prepared first.
    """

    def __init__(self, planned: list[_PlannedShard], committed: dict[int, ShardCommit], bits: int | None) -> None:
        self._waiting = deque(planned)
        self._committed = committed
        self._seen = Duplicates(bits) if bits is not None else None

    def due(self, group: _PlannedShard) -> Iterator[tuple[_PlannedShard, list[SourceReport]]]:
        """Shards to write after a new report of a source of `group`, each with the reports of its sources, in order."""
        if self._seen is None:
            if group.is_complete:
                yield group, group.ordered_reports
            return
        while self._waiting and (self._waiting[0].is_complete or self._waiting[0].number in self._committed):
            first = self._waiting.popleft()
            known = self._committed.get(first.number)
            reports = first.ordered_reports if known is None else known.reports
            reports = [drop_duplicates(report, self._seen) for report in reports]
            if known is None:
                yield first, reports
