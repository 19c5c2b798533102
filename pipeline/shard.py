"""Stage 1: a folder of videos becomes WebDataset shards of clips.

Sources are sorted and cut into planned shards, so the same sources always give the same shards. One job
prepares one source (decode, cut, resize, encode) in a process that a time-out can kill; a Ray task writes
each shard from the clips of its sources, without the pixels passing through the driver. Every source ends
in exactly one of shards, filtered and quarantine (`data/ledger.py`), and the stage ends by counting them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ray
from pydantic import BaseModel, ConfigDict, Field

from data.buckets import Bucket
from data.captions import CaptionError, caption_of, read_caption_table
from data.clip import VIDEO_MEMBER, ClipRecord, clip_key, split_of
from data.ledger import Filter, Rejection, balance, reject
from data.probe import VideoError
from data.publish import publish_text
from data.shards import (
    FILTERED_NAME,
    INDEX_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    IndexRow,
    Manifest,
    ShardRecord,
    content_fingerprint,
    write_index,
    write_rejections,
    write_shard,
)
from data.sources import Source, SourceError
from data.video import encode_clip, read_spans
from pipeline.pool import Done, run_jobs
from pipeline.progress import bar

COMMIT_SUFFIX = ".commit.json"


class ShardConfig(BaseModel):
    """How videos are cut into clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: Bucket = Bucket()
    captions: Path | None = None  # a CSV, JSONL or JSON table; None: sidecar files, then folder names
    max_clips_per_video: int = Field(default=4, ge=1)
    videos_per_shard: int = Field(default=256, ge=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    decode_timeout_seconds: float = Field(default=120, gt=0)  # for one video; then its process is killed


class SourceReport(BaseModel):
    """What became of one source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    num_clips: int = 0  # in the shard
    filtered: list[Rejection] = []  # its clips, or itself, left out on purpose
    quarantined: Rejection | None = None


class ShardCommit(BaseModel):
    """Published beside a shard after it: the shard is done, and this is what became of its sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: ShardRecord
    rows: list[IndexRow]
    reports: list[SourceReport]


Clips = list[tuple[ClipRecord, bytes]]


def prepare_source(
    source_dir: Path, table: dict[str, str], config: ShardConfig, source: Source
) -> tuple[SourceReport, Clips]:
    """Cut one video into clips. Never raises for a bad video: reports why there are none."""
    bucket = config.bucket
    quarantine = partial(reject, source.name)
    try:
        caption = caption_of(source_dir, source.name, table)
        spans = read_spans(Path(source.path), bucket, config.max_clips_per_video)
    except CaptionError as error:
        return SourceReport(source=source.name, quarantined=quarantine("caption", "bad_caption", str(error))), []
    except VideoError as error:
        if error.reason in get_args(Filter):
            return SourceReport(source=source.name, filtered=[quarantine("filter", error.reason, str(error))]), []
        return SourceReport(source=source.name, quarantined=quarantine("decode", error.reason, str(error))), []
    except FileNotFoundError:
        return SourceReport(source=source.name, quarantined=quarantine("read", "missing", "the file is gone")), []
    except OSError as error:
        detail = f"it cannot be read: {error.strerror}"
        return SourceReport(source=source.name, quarantined=quarantine("read", "unreadable", detail)), []
    clips = []
    for span in spans:
        record = ClipRecord(
            key=clip_key(source.name, span.start_seconds, bucket),
            source=source.name,
            start_seconds=span.start_seconds,
            caption=caption,
            split=split_of(source.name, config.validation_fraction),
            decoder=span.decoder,
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=bucket.fps,
        )
        clips.append((record, encode_clip(span.frames, bucket.fps)))
    return SourceReport(source=source.name, num_clips=len(clips)), clips


def commit_shard(path: Path, reports: list[SourceReport], *clips: Clips) -> None:
    """Write one shard and then its commit. Runs in a worker; Ray has brought the clips of every source."""
    shard, rows = write_shard(path, [clip for source in clips for clip in source], VIDEO_MEMBER)
    commit = ShardCommit(shard=shard, rows=rows, reports=reports)
    publish_text(path.with_suffix(COMMIT_SUFFIX), commit.model_dump_json())


def read_commit(path: Path) -> ShardCommit | None:
    """The commit of the shard at `path`, or None where it is not done."""
    commit = path.with_suffix(COMMIT_SUFFIX)
    return ShardCommit.model_validate_json(commit.read_text(encoding="utf-8")) if commit.exists() else None


@dataclass
class _Group:
    """One planned shard while its sources are being prepared."""

    path: Path
    sources: Sequence[Source]
    reports: dict[str, SourceReport] = field(default_factory=dict)  # by source
    clips: dict[str, Any] = field(default_factory=dict)  # source -> reference to its clips

    @property
    def ready(self) -> bool:
        return len(self.reports) == len(self.sources)


def make_shards(
    sources: Sequence[Source], source_dir: Path, output_dir: Path, config: ShardConfig, num_workers: int
) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that are already there stay.

    Args:
        sources: in the order in which their clips shall lie in the shards.
        source_dir: what captions of sidecars and folders are looked up under.

    Raises:
        SourceError: none of the sources can be used.
        CaptionError: the caption table cannot be read.
    """
    table = {} if config.captions is None else read_caption_table(config.captions)
    planned = [
        _Group((output_dir / f"shard-{number:05d}.tar").resolve(), sources[at : at + config.videos_per_shard])
        for number, at in enumerate(range(0, len(sources), config.videos_per_shard))
    ]
    missing = [group for group in planned if read_commit(group.path) is None]
    prepare = partial(prepare_source, source_dir.resolve(), table, config)
    _prepare_and_commit(prepare, missing, num_workers, config.decode_timeout_seconds, len(sources))

    commits = [commit for group in planned if (commit := read_commit(group.path)) is not None]
    manifest = _close_ledger(sources, commits, output_dir, config)
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _prepare_and_commit(
    prepare: partial[tuple[SourceReport, Clips]],
    groups: list[_Group],
    num_workers: int,
    timeout_seconds: float,
    num_sources: int,
) -> None:
    """Prepare every source of `groups`, writing each shard as soon as its last source is in."""
    commit = ray.remote(commit_shard).options(num_cpus=0)
    group_of = {source: group for group in groups for source in group.sources}
    num_done, num_rejected, commits = num_sources - len(group_of), 0, []
    with bar("shard", num_sources, "videos", start=num_done) as progress:
        for result in run_jobs(prepare, list(group_of), num_workers, timeout_seconds):
            source, group = result.job, group_of[result.job]
            if isinstance(result, Done):
                report, group.clips[source.name] = result.report, result.payload
            else:
                quarantined = reject(source.name, "decode", result.reason, result.detail)
                report = SourceReport(source=source.name, quarantined=quarantined)
            group.reports[source.name] = report
            if group.ready:
                names = [source.name for source in group.sources]
                clips = [group.clips[name] for name in names if name in group.clips]
                commits.append(commit.remote(group.path, [group.reports[name] for name in names], *clips))
                group.clips.clear()
            num_done, num_rejected = num_done + 1, num_rejected + (report.num_clips == 0)
            progress.update(num_done, f"{num_rejected} left out" if num_rejected else "")
    ray.get(commits)


def _close_ledger(
    sources: Sequence[Source], commits: Iterable[ShardCommit], output_dir: Path, config: ShardConfig
) -> Manifest:
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
    write_index(output_dir, rows)
    shards = [commit.shard for commit in commits]
    return Manifest(
        kind="clips",
        fingerprint=content_fingerprint(shards),
        bucket=config.bucket,
        num_samples=len(rows),
        ledger=ledger,
        shards=shards,
    )


def dataset_outputs(output_dir: Path, manifest: Manifest) -> list[Path]:
    """The files of a finished dataset."""
    return [output_dir / name for name in (MANIFEST_NAME, INDEX_NAME, *(shard.name for shard in manifest.shards))]
