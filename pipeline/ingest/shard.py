"""The shard stage: videos become WebDataset shards of clips.

Which source belongs to which shard is decided by its name (`pipeline/ingest/layout.py`), so the same sources always
give the same shards; what is there already is not made again (`pipeline/ingest/plan.py`). One job prepares one source
(`pipeline/ingest/prepare.py`) in a process that is killed after a timeout. The same processes write each shard from the
clips of its sources, which do not pass through the driver. Every source ends in exactly one of shards, filtered and
quarantine (`data/curation/ledger.py`), which is checked at the end.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data.curation.ledger import Rejection, reject
from data.curation.listing import ListingCounts
from data.curation.source import Source, look_again
from data.dataset.manifest import MANIFEST_NAME, Manifest
from data.files.publish import publish_text, remove_unpublished
from pipeline.distributed.isolated_pool import Done, IsolatedPool
from pipeline.ingest.buckets import read_choice, settle_buckets
from pipeline.ingest.captions import Captions, read_captions
from pipeline.ingest.close import close_dataset
from pipeline.ingest.commit import ShardCommit, commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.duplicates import duplicates_of
from pipeline.ingest.judge import started_judge
from pipeline.ingest.plan import Plan, plan_shards
from pipeline.ingest.prepare import PrepareConfig, prepare_and_hash, stored_reports
from pipeline.ingest.reports import Origin, SourceReport, StoredReport
from pipeline.ingest.verify import NotAsPlannedError, verified_commits
from pipeline.run.commits import SHARD_PATTERN, publish_commit, read_commit, remove_other_shards
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, RunFiles

logger = logging.getLogger(__name__)


MAX_ROUNDS = 10
"""Of planning and cutting; one is enough, or two where duplicates are looked for, unless shards turn out damaged."""


def forget_quarantined(output_dir: Path) -> None:
    """Let the next start cut the quarantined sources again."""
    for path in sorted(output_dir.glob(SHARD_PATTERN)):
        commit = read_commit(ShardCommit, path)
        if commit is None or all(report.quarantined is None for report in commit.reports):
            continue
        forgotten = Origin(cut="", stamp="")  # of no source
        reports = [
            report if report.quarantined is None else report.model_copy(update={"origin": forgotten})
            for report in commit.reports
        ]
        publish_commit(path, commit.model_copy(update={"reports": reports}))
        (output_dir / MANIFEST_NAME).unlink(missing_ok=True)


def make_shards(
    sources: Sequence[Source],
    output_dir: Path,
    config: ShardConfig,
    num_workers: int,
    listing: ListingCounts | None = None,
    files: RunFiles = SHARED,
) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that were made from the same inputs are reused.

    Args:
        sources: in the order in which their clips are stored in the shards.
        listing: what was found beside them, for the manifest.
        files: of the run that `output_dir` belongs to.

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
    buckets = settle_buckets(sources, output_dir, config, num_workers, files)
    spool_dir = output_dir.resolve() if files.is_shared else None
    prepare = PrepareConfig(buckets, captions.table, config, captions.shared_names, spool_dir, files=files)
    plan, manifest = _finish_shards(sources, output_dir, prepare, num_workers)
    remove_unpublished(output_dir)  # left by workers that were killed while writing
    remove_other_shards(output_dir, {shard.path.name for shard in plan.shards})

    manifest = manifest.model_copy(update={"listing": listing})
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _finish_shards(
    sources: Sequence[Source], output_dir: Path, config: PrepareConfig, num_workers: int
) -> tuple[Plan, Manifest]:
    """Cut and write what is missing, then the index and the ledger; returns the plan by which everything stands.

    A shard that clips are taken from may be damaged, a host that holds clips may be lost, and a caption may change
    meanwhile, all of which is seen when the commits are read in the end; and whether a clip is a duplicate depends on
    all clips before it. So it is planned again from what is there then, until nothing is left to do.
    """
    plan = plan_shards(sources, output_dir.resolve(), config)
    for _ in range(MAX_ROUNDS):
        if not plan.is_done:
            logger.info("%s", plan)
            plan.record_stamps()
            with started_judge(config.settings.models) as judge:
                _prepare_and_commit(plan, replace(config, judge=judge), num_workers)
        present = look_again(sources)
        if plan.is_done or not plan.depends_on_clips:
            try:
                return plan, _closed(present, plan, output_dir)
            except NotAsPlannedError as error:
                logger.info("%s; it is planned again", error)
        plan = plan_shards(present, output_dir.resolve(), config)
    unfinished = [shard.path.name for shard in plan.shards if not shard.stands]
    raise RuntimeError(
        f"{output_dir}: {len(unfinished)} shards are still not as planned, such as {unfinished[:3]}: a bug"
    )


def _describe_captions(captions: Captions, table: Path | None) -> None:
    """Log how many sources have a caption from the table, and which rows match none."""
    if (match := captions.match) is not None:
        level = logging.WARNING if match.unused or match.num_kept else logging.INFO
        logger.log(level, "%s: %s", table, match)


def describe_reuse(sources: Sequence[Source], output_dir: Path, config: ShardConfig) -> str | None:
    """What of a folder these sources and settings would use again, as a sentence; None: nothing."""
    buckets = config.buckets
    if config.choose_buckets is not None:
        known = read_choice(output_dir, config.choose_buckets)
        if known is None:
            return None
        buckets = known.buckets
    captions = read_captions(config.captions, sources)
    plan = plan_shards(sources, output_dir, PrepareConfig(buckets, captions.table, config, captions.shared_names))
    return str(plan) if plan.has_reuse else None


def _prepare_and_commit(plan: Plan, config: PrepareConfig, num_workers: int) -> None:
    """Cut the sources whose clips are nowhere, and write each shard as soon as all of its sources are there."""
    files = config.files
    shard_of = plan.to_cut
    num_sources = sum(len(shard.sources) for shard in plan.shards)
    num_done, num_rejected = num_sources - len(shard_of), 0
    with (
        IsolatedPool(
            partial(prepare_and_hash, config),
            list(shard_of),
            num_workers,
            config.settings.decode_timeout_seconds,
            partial(stored_reports, config),
        ) as pool,
        bar("shard", num_sources, "videos", start=num_done) as progress,
    ):
        for shard in plan.shards:
            if not (shard.stands or shard.to_cut):
                recipe, _ = shard.give()
                pool.call(commit_shard, files, recipe)
        for result in pool.outcomes():
            source, shard = result.job, shard_of[result.job]
            if isinstance(result, Done):
                report: StoredReport = result.report
                shard.add(report, result.payload if report.has_clips else None)
            else:
                quarantined = reject(source.name, "decode", result.reason, result.detail)
                lost = SourceReport(source=source.name, origin=plan.origin(source), quarantined=quarantined)
                report = StoredReport.of(lost)
                shard.add(report)
            if shard.is_complete:
                recipe, clips = shard.give()
                pool.call(commit_shard, files, recipe, *clips)
            num_done, num_rejected = num_done + 1, num_rejected + (not report.has_clips)
            progress.update(num_done, f"{num_rejected} left out" if num_rejected else "")


def _closed(sources: Sequence[Source], plan: Plan, output_dir: Path) -> Manifest:
    """Write the index and the files of the ledger; return the manifest.

    Raises:
        NotAsPlannedError: a shard is not as it should be; nothing is written.
        LedgerError, SourceError: as `close_dataset`.
    """

    def left_out(report: SourceReport) -> Iterable[Rejection]:
        return [*report.filtered, *duplicates_of(report, plan.dropped)]

    return close_dataset([source.name for source in sources], verified_commits(plan, sources), output_dir, left_out)
