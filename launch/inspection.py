"""What a folder holds, in words: a run, a dataset, a checkpoint, or sampled clips."""

from collections import Counter
from math import prod
from pathlib import Path

from data.shards import (
    FILTERED_NAME,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    read_index,
    read_manifest,
    read_rejections,
)
from launch.config import ConfigError
from pipeline.checkpoint import LATEST_NAME, RECORD_NAME, open_checkpoint
from pipeline.sample import SAMPLES_NAME, read_samples
from pipeline.stage import read_record


def describe_folder(path: Path) -> str:
    """A few lines about a folder this project wrote.

    Raises:
        ConfigError: the folder is none of ours.
    """
    if (path / MANIFEST_NAME).is_file():
        return _dataset(path)
    if (path / RECORD_NAME).is_file() or (path / LATEST_NAME).is_file():
        return _checkpoint(path)
    if (path / SAMPLES_NAME).is_file():
        clips = read_samples(path)
        scales = Counter(f"{clip.request.guidance_scale:g}" for clip in clips)
        counts = ", ".join(f"{number} at guidance {scale}" for scale, number in scales.items())
        return f"{path}: {len(clips)} sampled clips ({counts})\n  {path / 'index.html'}"
    if (path / "config.yaml").is_file():
        return _run(path)
    raise ConfigError(f"{path} is not a run, a dataset, a checkpoint or a folder of samples")


def _run(path: Path) -> str:
    lines = [f"{path}: a run"]
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and (record := read_record(folder)) is not None:
            state = "complete" if record.complete else "unfinished"
            facts = ", ".join(f"{name} {value}" for name, value in record.summary.items())
            lines.append(f"  {folder.name:24} {state:10} {record.wall_seconds:7.1f} s  {facts}")
    return "\n".join(lines)


def _dataset(path: Path) -> str:
    manifest, rows = read_manifest(path), read_index(path)
    megabytes = sum(shard.num_bytes for shard in manifest.shards) / 1e6
    splits = Counter(row.split for row in rows)
    captions = Counter(row.caption for row in rows)
    examples = ", ".join(repr(caption) for caption, _ in captions.most_common(3))
    lines = [
        f"{path}: {manifest.kind}, {manifest.num_samples} samples in {len(manifest.shards)} shards, {megabytes:.1f} MB",
        *(
            f"  bucket      {b.bucket.name}: {b.num_samples} samples, {b.num_train} to train on"
            for b in manifest.buckets
        ),
        f"  splits      {', '.join(f'{name} {number}' for name, number in splits.items())}",
        f"  captions    {len(captions)} different, for example {examples}",
        *_ledger(path, manifest),
    ]
    if manifest.latent_stats is not None:
        for name, values in (("mean", manifest.latent_stats.mean), ("std", manifest.latent_stats.std)):
            lines.append(f"  {name:11} {' '.join(f'{value:.3f}' for value in values)}")
    return "\n".join(lines)


def _ledger(path: Path, manifest: Manifest) -> list[str]:
    """Where the sources went, and a table by reason of what was left out."""
    counts = manifest.ledger
    if counts is None:
        return []
    lines = [
        f"  sources     {counts.sources} = {counts.shards} in shards + {counts.filtered} filtered "
        f"+ {counts.quarantine} in quarantine"
    ]
    for name in (FILTERED_NAME, QUARANTINE_NAME):
        rejections = read_rejections(path / name)
        by_reason = Counter(rejection.reason for rejection in rejections)
        for reason, number in by_reason.most_common():
            example = next(rejection for rejection in rejections if rejection.reason == reason)
            lines.append(f"    {name:16} {number:6} {reason:14} such as {example.source}: {example.detail}")
    return lines


def _checkpoint(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    record = checkpoint.record
    num_parameters = sum(prod(shape) for shape in record.parameters.values())
    num_bytes = sum(file.num_bytes for file in record.files.values())
    return "\n".join(
        [
            f"{checkpoint.folder}: {record.kind}, after step {record.step} ({record.cursor} samples)",
            f"  parameters  {num_parameters:,} in {len(record.parameters)} tensors",
            f"  saved by    {record.world_size} workers, ZeRO stage {record.zero_stage}",
            f"  files       {len(record.files)}, {num_bytes / 1e6:.1f} MB, checksums verified",
            *(f"  {name:11} {value}" for name, value in record.trained.items()),
        ]
    )
