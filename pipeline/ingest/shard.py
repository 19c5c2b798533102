"""The shard stage: videos become WebDataset shards of clips.

Sources are assigned to shards in their order, so the same sources always give the same shards. One job prepares one
source (`pipeline/ingest/prepare.py`) in a process that is killed after a timeout. The same processes write each shard
from the clips of its sources, which do not pass through the driver. Every source ends in exactly one of shards,
filtered and quarantine (`data/curation/ledger.py`), which is checked at the end.
"""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.curation.filters import Duplicates
from data.curation.ledger import FILTERED_NAME, QUARANTINE_NAME, Reason, balance, reject, write_rejections
from data.curation.listing import ListingCounts
from data.curation.lookalikes import Lookalikes
from data.curation.sources import Source, SourceError, listing_fingerprint
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import write_index
from data.dataset.manifest import MANIFEST_NAME, Manifest, content_fingerprint, count_buckets
from data.dataset.shards import write_shard
from data.files.publish import publish_text, remove_unpublished
from pipeline.distributed.isolated_pool import Done, IsolatedPool
from pipeline.ingest.buckets import read_choice, settle_buckets
from pipeline.ingest.captions import Captions, read_captions
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.judge import started_judge
from pipeline.ingest.prepare import PrepareConfig, SourceReport, drop_duplicates, prepare_source, seen_clips
from pipeline.ingest.spool import Clips
from pipeline.run.commits import (
    Commit,
    publish_commit,
    read_commit,
    remove_commit,
    remove_other_shards,
    reusable_commit,
    writing,
)
from pipeline.run.fingerprints import fingerprint
from pipeline.run.progress import bar

logger = logging.getLogger(__name__)


class ShardCommit(Commit):
    """The commit of a shard of clips, made from its sources, their captions and the settings."""

    reports: list[SourceReport]  # what became of each source


def commit_shard(path: Path, input_fingerprint: str, reports: list[SourceReport], *clips: Clips) -> None:
    """Write a shard, then its commit. Runs in a worker, which gets the clips from Ray's object store.

    Raises:
        ShardWriteError: the disk is full, for example.
    """
    kept = {clip.key for report in reports for clip in report.clips}
    samples = (clip for source in clips for clip in source if clip[0].key in kept)
    with writing(path):
        remove_commit(path)
        shard, rows = write_shard(path, samples, VIDEO_MEMBER)
        publish_commit(path, ShardCommit(input_fingerprint=input_fingerprint, shard=shard, rows=rows, reports=reports))
    for source in clips:
        source.remove()


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


def make_shards(
    sources: Sequence[Source],
    output_dir: Path,
    config: ShardConfig,
    num_workers: int,
    listing: ListingCounts | None = None,
) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that were made from the same inputs are reused.

    Args:
        sources: in the order in which their clips are stored in the shards.
        listing: what was found beside them, for the manifest.

    Raises:
        SourceError: none of the sources can be used.
        CaptionError: the caption table cannot be read, or matches no video.
        CurationModelError: one of `config.models` cannot be used.
        RayTaskError: a shard cannot be written, as a `ShardWriteError` says, which is its cause. Nothing else is cut.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)  # the folder is not a dataset until all shards are written
    captions = read_captions(config.captions, sources)
    _describe_captions(captions, config.captions)
    buckets = settle_buckets(sources, output_dir, config, num_workers)
    prepare = PrepareConfig(buckets, captions.table, config, captions.shared_names, output_dir.resolve())
    planned = _plan(sources, output_dir.resolve(), prepare)
    with started_judge(config.models) as judge:
        _prepare_and_commit(partial(prepare_source, replace(prepare, judge=judge)), planned, config, num_workers)
    remove_unpublished(output_dir)  # left by workers that were killed while writing
    remove_other_shards(output_dir, {group.path.name for group in planned})

    commits = [commit for group in planned if (commit := group.commit()) is not None]
    manifest = _close_ledger(sources, commits, output_dir).model_copy(update={"listing": listing})
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
    committed = {group.number: commit for group in planned if (commit := group.commit()) is not None}
    group_of = {source: group for group in planned if group.number not in committed for source in group.sources}
    num_sources = sum(len(group.sources) for group in planned)
    num_done, num_rejected = num_sources - len(group_of), 0
    order = _CommitOrder(planned, committed, seen_clips(config.filters))
    with (
        IsolatedPool(prepare, list(group_of), num_workers, config.decode_timeout_seconds) as pool,
        bar("shard", num_sources, "videos", start=num_done) as progress,
    ):
        for result in pool.outcomes():
            source, group = result.job, group_of[result.job]
            if isinstance(result, Done):
                report: SourceReport = result.report
                if report.clips:
                    group.clips[source.name] = result.payload
            else:
                quarantined = reject(source.name, "decode", result.reason, result.detail)
                report = SourceReport(source=source.name, quarantined=quarantined)
            group.reports[source.name] = report
            for due, reports in order.due(group):
                clips = [due.clips[source.name] for source in due.sources if source.name in due.clips]
                pool.call(commit_shard, due.path, due.input_fingerprint, reports, *clips)
                due.clips.clear()  # the object store and this process forget what is committed
                due.reports.clear()
            num_done, num_rejected = num_done + 1, num_rejected + (not report.clips)
            progress.update(num_done, f"{num_rejected} left out" if num_rejected else "")


class _CommitOrder:
    """Decides which shards can be written now.

    Without a search for duplicates, every complete shard. Otherwise shards are written in their order, because which of
    two duplicate clips is kept must not depend on which was prepared first.
    """

    def __init__(
        self,
        planned: list[_PlannedShard],
        committed: dict[int, ShardCommit],
        seen: Duplicates | Lookalikes | None,
    ) -> None:
        self._waiting, self._committed, self._seen = deque(planned), committed, seen

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


def _close_ledger(sources: Sequence[Source], commits: Iterable[ShardCommit], output_dir: Path) -> Manifest:
    """Write the index and the files of the ledger; return the manifest.

    Raises:
        LedgerError: the ledger does not account for every source exactly once.
        SourceError: no source has a clip.
    """
    commits = list(commits)
    reports = [report for commit in commits for report in commit.reports]
    quarantined = [report.quarantined for report in reports if report.quarantined is not None]
    filtered = [rejection for report in reports for rejection in report.filtered]
    write_rejections(output_dir / QUARANTINE_NAME, quarantined)
    write_rejections(output_dir / FILTERED_NAME, filtered)
    rows = [row for commit in commits for row in commit.rows]
    sharded = {row.source for row in rows}
    ledger = balance(
        [source.name for source in sources],
        sharded,
        {rejection.source for rejection in filtered} - sharded,
        [rejection.source for rejection in quarantined],
    )
    if not rows:
        first = [*quarantined, *filtered][0]
        raise SourceError(
            f"none of the {len(sources)} videos can be used (the first, {first.source}: {first.detail}); "
            f"every reason is in {output_dir / QUARANTINE_NAME} and {FILTERED_NAME}"
        )
    by_filter: Counter[Reason] = Counter(rejection.reason for rejection in filtered)
    write_index(output_dir, rows)
    shards = [commit.shard for commit in commits]
    return Manifest(
        kind="clips",
        fingerprint=content_fingerprint(shards),
        buckets=count_buckets(rows),
        num_samples=len(rows),
        ledger=ledger,
        filtered=dict(sorted(by_filter.items())),
        shards=shards,
    )
