"""Stage 1: a folder of videos becomes WebDataset shards of clips.

Sources are sorted and divided among planned shards, so the same sources always give the same shards. One job
prepares one source (`pipeline/cut.py`) in a process that a time-out can kill; a Ray task writes each shard
from the clips of its sources, without the pixels passing through the driver. Every source ends in exactly
one of shards, filtered and quarantine (`data/ledger.py`), and the stage ends by counting them.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError

from data.curation.captions import read_caption_table
from data.curation.filters import Duplicates
from data.curation.ledger import FILTERED_NAME, QUARANTINE_NAME, Reason, balance, reject, write_rejections
from data.curation.sources import Source, SourceError, listing_fingerprint
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import IndexRow, write_index
from data.dataset.manifest import MANIFEST_NAME, Manifest, ShardRecord, content_fingerprint, count_buckets
from data.dataset.shards import write_shard
from data.files.publish import publish_text, remove_unpublished
from data.records import Record
from pipeline.distributed.isolated_pool import Done, run_jobs
from pipeline.ingest.buckets import _read_choice, settle_buckets
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.prepare import Clips, CutConfig, SourceReport, drop_duplicates, prepare_source
from pipeline.run.fingerprints import fingerprint
from pipeline.run.progress import bar

COMMIT_SUFFIX = ".commit.json"


class ShardCommit(Record):
    """Published beside a shard after it: the shard is done, and this is what became of its sources."""

    made_from: str  # fingerprint of its sources, their captions and the settings
    shard: ShardRecord
    rows: list[IndexRow]
    reports: list[SourceReport]


def commit_shard(path: Path, made_from: str, reports: list[SourceReport], *clips: Clips) -> None:
    """Write one shard and then its commit. Runs in a worker; Ray has brought the clips of every source."""
    kept = {clip.key for report in reports for clip in report.clips}
    samples = [clip for source in clips for clip in source if clip[0].key in kept]
    path.with_suffix(COMMIT_SUFFIX).unlink(missing_ok=True)  # of a shard made from something else
    shard, rows = write_shard(path, samples, VIDEO_MEMBER)
    commit = ShardCommit(made_from=made_from, shard=shard, rows=rows, reports=reports)
    publish_text(path.with_suffix(COMMIT_SUFFIX), commit.model_dump_json())


def read_commit(path: Path) -> ShardCommit | None:
    """The commit of the shard at `path`, or None where it is not done, or was by an older program."""
    try:
        return ShardCommit.model_validate_json(path.with_suffix(COMMIT_SUFFIX).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def forget_quarantined(output_dir: Path) -> None:
    """Undo the shards that sources are missing from, so that the next start tries those again.

    And those after them, where duplicates are looked for: which clips they keep depends on the clips before.
    """
    is_undone = False
    for path in sorted(output_dir.glob("shard-*.tar")):
        commit = read_commit(path)
        if commit is None:
            continue
        compares = any(clip.perceptual_hash is not None for report in commit.reports for clip in report.clips)
        if (compares and is_undone) or any(report.quarantined is not None for report in commit.reports):
            path.with_suffix(COMMIT_SUFFIX).unlink()
            (output_dir / MANIFEST_NAME).unlink(missing_ok=True)
            is_undone = True


@dataclass
class _Group:
    """One planned shard while its sources are being prepared."""

    number: int
    path: Path
    sources: Sequence[Source]
    made_from: str
    reports: dict[str, SourceReport] = field(default_factory=dict)  # by source
    clips: dict[str, Any] = field(default_factory=dict)  # source -> reference to its clips

    @property
    def ready(self) -> bool:
        return len(self.reports) == len(self.sources)

    @property
    def ordered_reports(self) -> list[SourceReport]:
        return [self.reports[source.name] for source in self.sources]

    def commit(self) -> ShardCommit | None:
        """Its commit, if it has been made from just this and is there."""
        commit = read_commit(self.path) if self.path.is_file() else None
        return commit if commit is not None and commit.made_from == self.made_from else None


def make_shards(sources: Sequence[Source], output_dir: Path, config: ShardConfig, num_workers: int) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that were made from the same stay.

    Args:
        sources: in the order in which their clips shall lie in the shards.

    Raises:
        SourceError: none of the sources can be used.
        CaptionError: the caption table cannot be read.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)  # no dataset until all of it is
    table = {} if config.captions is None else read_caption_table(config.captions)
    cut = CutConfig(settle_buckets(sources, output_dir, config, num_workers), table, config)
    planned = _plan(sources, output_dir.resolve(), cut)
    _prepare_and_commit(partial(prepare_source, cut), planned, config, num_workers)
    remove_unpublished(output_dir)  # of workers that were killed while they wrote
    remove_other_shards(output_dir, {group.path.name for group in planned})

    commits = [commit for group in planned if (commit := group.commit()) is not None]
    manifest = _close_ledger(sources, commits, output_dir)
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _plan(sources: Sequence[Source], output_dir: Path, cut: CutConfig) -> list[_Group]:
    """Which sources go into which shard, and from what each is made."""
    size, settings, before = cut.config.videos_per_shard, cut.fingerprint(), ""
    planned = []
    for number, at in enumerate(range(0, len(sources), size)):
        group = sources[at : at + size]
        made_from = fingerprint([settings, listing_fingerprint(group), before])
        if cut.config.filters.duplicate_bits is not None:
            before = made_from  # what a shard keeps depends on the ones before it
        planned.append(_Group(number, output_dir / f"shard-{number:05d}.tar", group, made_from))
    return planned


def count_reusable_shards(sources: Sequence[Source], output_dir: Path, config: ShardConfig) -> int:
    """How many shards in a folder are what these sources and settings would give again."""
    buckets = config.buckets
    if config.choose_buckets is not None:
        known = _read_choice(output_dir, config.choose_buckets)
        if known is None:
            return 0
        buckets = known.buckets
    table = {} if config.captions is None else read_caption_table(config.captions)
    return sum(group.commit() is not None for group in _plan(sources, output_dir, CutConfig(buckets, table, config)))


def remove_other_shards(output_dir: Path, names: Collection[str]) -> None:
    """Delete the shards of an earlier, longer list."""
    for path in output_dir.glob("shard-*.tar"):
        if path.name not in names:
            path.with_suffix(COMMIT_SUFFIX).unlink(missing_ok=True)
            path.unlink()


def _prepare_and_commit(
    prepare: partial[tuple[SourceReport, Clips]], planned: list[_Group], config: ShardConfig, num_workers: int
) -> None:
    """Prepare the sources of every shard that is missing, and write each as soon as its last source is in."""
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
                commits.append(committing.remote(due.path, due.made_from, reports, *clips))
                due.clips.clear()
            num_done, num_rejected = num_done + 1, num_rejected + (not report.clips)
            progress.update(num_done, f"{num_rejected} left out" if num_rejected else "")
    ray.get(commits)


class _CommitOrder:
    """Which shards can be written now.

    Any that is complete, unless duplicates are looked for: which clip of a pair stays must not depend on who
    was quicker, so then shards are written in their order, and each knows what the ones before it keep.
    """

    def __init__(self, planned: list[_Group], committed: dict[int, ShardCommit], bits: int | None) -> None:
        self._waiting = deque(planned)
        self._committed = committed
        self._seen = Duplicates(bits) if bits is not None else None

    def due(self, group: _Group) -> Iterator[tuple[_Group, list[SourceReport]]]:
        """Shards to write, with the reports of their sources in order, now that `group` has a new report."""
        if self._seen is None:
            if group.ready:
                yield group, group.ordered_reports
            return
        while self._waiting and (self._waiting[0].ready or self._waiting[0].number in self._committed):
            first = self._waiting.popleft()
            known = self._committed.get(first.number)
            reports = first.ordered_reports if known is None else known.reports
            reports = [drop_duplicates(report, self._seen) for report in reports]
            if known is None:
                yield first, reports


def _close_ledger(sources: Sequence[Source], commits: Iterable[ShardCommit], output_dir: Path) -> Manifest:
    """Write index, filtered and quarantine, check that they account for every source, and sum up.

    Raises:
        LedgerError: they do not.
        SourceError: there is not a single clip.
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
