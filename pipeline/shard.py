"""Stage 1: a folder of videos becomes WebDataset shards of clips.

Sources are sorted and cut into planned shards, so the same folder always gives the same shards. One Ray
task prepares one source (decode, cut, resize, encode); one more task writes each shard from the clips of
its sources, without the pixels passing through the driver. A source that cannot be used goes to
quarantine with its reason; one that takes longer than the time-out, or kills its worker, does too.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import WorkerCrashedError

from data.buckets import Bucket
from data.captions import CaptionError, caption_of, read_caption_table
from data.clip import VIDEO_MEMBER, ClipRecord, clip_key, split_of
from data.publish import publish_text
from data.shards import (
    INDEX_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    IndexRow,
    Manifest,
    ShardRecord,
    content_fingerprint,
    write_index,
    write_quarantine,
    write_shard,
)
from data.video import VIDEO_SUFFIXES, VideoError, encode_clip, read_spans
from pipeline.progress import Bar, bar
from pipeline.stage import fingerprint

COMMIT_SUFFIX = ".commit.json"


class ShardConfig(BaseModel):
    """How a folder of videos is cut into clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: Bucket = Bucket()
    captions: Path | None = None  # a CSV, JSONL or JSON table; None: sidecar files, then folder names
    max_clips_per_video: int = Field(default=4, ge=1)
    videos_per_shard: int = Field(default=256, ge=1)
    validation_fraction: float = Field(default=0.05, ge=0, lt=1)
    timeout_seconds: float = Field(default=120, gt=0)  # for one video


class SourceError(ValueError):
    """A source folder there is nothing to make clips from."""


class ShardCommit(BaseModel):
    """Published beside a shard after it: the shard is done, and this is what became of its sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shard: ShardRecord
    rows: list[IndexRow]
    quarantined: dict[str, str]  # source -> reason


Clips = list[tuple[ClipRecord, bytes]]


def list_sources(source_dir: Path) -> list[str]:
    """Every video file below a folder, sorted, as paths relative to it with forward slashes.

    Raises:
        SourceError: the folder is missing, empty, or holds no video.
    """
    if not source_dir.is_dir():
        raise SourceError(f"{source_dir} is not a folder; set data.source to a folder of videos")
    files = [path for path in source_dir.rglob("*") if path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise SourceError(f"{source_dir} is empty; put videos in it or point data.source elsewhere")
    if not videos:
        found = ", ".join(sorted({path.suffix.lower() or path.name for path in files})[:5])
        raise SourceError(
            f"{source_dir} holds {len(files)} files ({found}) but no video; a video ends in one of "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return sorted(path.relative_to(source_dir).as_posix() for path in videos)


def source_fingerprint(source_dir: Path, sources: list[str]) -> str:
    """Changes when a file is added, removed, resized or rewritten."""
    stats = [(source_dir / source).stat() for source in sources]
    return fingerprint([(s, st.st_size, st.st_mtime_ns) for s, st in zip(sources, stats, strict=True)])


def prepare_source(source_dir: Path, source: str, config: ShardConfig, table: dict[str, str]) -> tuple[str, Clips]:
    """Cut one video into clips. Never raises for a bad video: gives (reason, no clips) instead of ("", clips)."""
    bucket = config.bucket
    try:
        caption = caption_of(source_dir, source, table)
        spans = read_spans(source_dir / source, bucket, config.max_clips_per_video)
    except (VideoError, CaptionError) as error:
        return str(error), []
    except OSError as error:
        return f"it cannot be read: {error.strerror}", []
    clips = []
    for span in spans:
        record = ClipRecord(
            key=clip_key(source, span.start_seconds, bucket),
            source=source,
            start_seconds=span.start_seconds,
            caption=caption,
            split=split_of(source, config.validation_fraction),
            decoder=span.decoder,
            num_frames=bucket.num_frames,
            height=bucket.height,
            width=bucket.width,
            fps=bucket.fps,
        )
        clips.append((record, encode_clip(span.frames, bucket.fps)))
    return "", clips


def commit_shard(path: Path, quarantined: dict[str, str], *clips: Clips) -> None:
    """Write one shard and then its commit. Runs in a worker; Ray has brought the clips of every source."""
    shard, rows = write_shard(path, [clip for source in clips for clip in source], VIDEO_MEMBER)
    commit = ShardCommit(shard=shard, rows=rows, quarantined=quarantined)
    publish_text(path.with_suffix(COMMIT_SUFFIX), commit.model_dump_json())


@dataclass
class _Group:
    """One planned shard while its sources are being prepared."""

    path: Path
    sources: list[str]
    clips: dict[str, Any] = field(default_factory=dict)  # source -> reference to its clips
    quarantined: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return len(self.clips) + len(self.quarantined) == len(self.sources)


def make_shards(source_dir: Path, output_dir: Path, config: ShardConfig, num_workers: int) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that are already there stay.

    Raises:
        SourceError: there is no video, or none that can be used.
        CaptionError: the caption table cannot be read.
    """
    sources = list_sources(source_dir)
    table = {} if config.captions is None else read_caption_table(config.captions)
    planned = [
        _Group((output_dir / f"shard-{number:05d}.tar").resolve(), sources[at : at + config.videos_per_shard])
        for number, at in enumerate(range(0, len(sources), config.videos_per_shard))
    ]
    missing = [group for group in planned if not group.path.with_suffix(COMMIT_SUFFIX).exists()]
    num_done = len(sources) - sum(len(group.sources) for group in missing)
    with bar("shard", len(sources), "videos", start=num_done) as progress:
        _prepare_all(source_dir.resolve(), missing, config, table, num_workers, progress, num_done)

    commits = [
        ShardCommit.model_validate_json(group.path.with_suffix(COMMIT_SUFFIX).read_text(encoding="utf-8"))
        for group in planned
    ]
    quarantined = {source: reason for commit in commits for source, reason in commit.quarantined.items()}
    write_quarantine(
        output_dir, [{"source": source, "stage": "shard", "reason": reason} for source, reason in quarantined.items()]
    )
    if len(quarantined) == len(sources):
        source, reason = next(iter(quarantined.items()))
        raise SourceError(
            f"none of the {len(sources)} videos in {source_dir} can be used (the first, {source}: {reason}); "
            f"every reason is in {output_dir / QUARANTINE_NAME}"
        )
    shards = [commit.shard for commit in commits]
    write_index(output_dir, [row for commit in commits for row in commit.rows])
    manifest = Manifest(
        kind="clips",
        fingerprint=content_fingerprint(shards),
        bucket=config.bucket,
        num_samples=sum(shard.num_samples for shard in shards),
        num_quarantined=len(quarantined),
        shards=shards,
    )
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _prepare_all(
    source_dir: Path,
    groups: list[_Group],
    config: ShardConfig,
    table: dict[str, str],
    num_workers: int,
    progress: Bar,
    num_already_done: int,
) -> None:
    """Prepare every source of `groups`, writing each shard as soon as its last source is in."""
    shared_table = ray.put(table)
    prepare: Any = ray.remote(prepare_source).options(num_cpus=1, max_retries=1, num_returns=2)
    commit = ray.remote(commit_shard).options(num_cpus=0)
    waiting = deque((group, source) for group in groups for source in group.sources)
    running: dict[Any, tuple[_Group, str, Any, float]] = {}  # reason -> group, source, clips, when it was handed out
    commits = []
    num_done, num_quarantined = num_already_done, 0
    while waiting or running:
        while waiting and len(running) < num_workers:  # no more than can run: the time-out counts from here
            group, source = waiting.popleft()
            reason, clips = prepare.remote(source_dir, source, config, shared_table)
            running[reason] = (group, source, clips, time.monotonic())
        finished, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
        for reason, (group, source, clips, begun) in list(running.items()):
            if reason in finished:
                try:
                    problem = str(ray.get(reason))
                except WorkerCrashedError:
                    problem = "decoding it crashed the worker twice"
            elif time.monotonic() - begun > config.timeout_seconds:
                ray.cancel(reason, force=True)
                problem = f"decoding it took longer than {config.timeout_seconds:g} s"
            else:
                continue
            del running[reason]
            if problem:
                group.quarantined[source] = problem
            else:
                group.clips[source] = clips
            if group.ready:
                ordered = [group.clips[name] for name in group.sources if name in group.clips]
                commits.append(commit.remote(group.path, group.quarantined, *ordered))
                group.clips.clear()
            num_done, num_quarantined = num_done + 1, num_quarantined + bool(problem)
            progress.update(num_done, f"{num_quarantined} in quarantine" if num_quarantined else "")
    ray.get(commits)


def dataset_outputs(output_dir: Path, manifest: Manifest) -> list[Path]:
    """The files of a finished dataset."""
    return [output_dir / name for name in (MANIFEST_NAME, INDEX_NAME, *(shard.name for shard in manifest.shards))]
