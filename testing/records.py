"""Clip records and random latents for tests and benchmarks."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, ClipRecord
from data.dataset.index import write_index
from data.dataset.manifest import ShardRecord
from data.dataset.rows import IndexRow
from data.dataset.shards import write_shard
from pipeline.run import randomness

SMALL = Bucket(num_frames=5, height=32, width=32, fps=8)


def made_up_clip(number: int, bucket: Bucket = SMALL) -> ClipRecord:
    """The record of clip `number`; its key is the number, in hexadecimal."""
    return ClipRecord(
        key=f"{number:020x}",
        source=f"{number}.mp4",
        start_seconds=0.0,
        caption=f"clip {number}",
        dataset="",
        split="train",
        decoder="decord",
        variant="",
        num_frames=bucket.num_frames,
        height=bucket.height,
        width=bucket.width,
        fps=bucket.fps,
        source_height=4 * bucket.height,
        source_width=4 * bucket.width,
    )


def index_row(number: int, bucket: Bucket = SMALL) -> IndexRow:
    """The row of clip `number` in a shard of ten clips that is not there; every seventh is for validation."""
    clip = made_up_clip(number, bucket)
    record = clip.model_dump(exclude={"split"})
    return IndexRow(
        **record,
        split="validation" if number % 7 == 0 else "train",
        bucket=bucket.name,
        shard=f"shard-{number // 10:05d}.tar",
        offset=512 * number,
        size=100 + number,
        crc32=number,
        caption_offset=7,
        caption_size=len(clip.caption),
        record_offset=8,
        record_size=9,
        end_seconds=bucket.num_frames / bucket.fps,
    )


def write_random_latents(
    folder: Path, num_samples: int, shape: tuple[int, ...], purpose: str, buckets: Sequence[Bucket] = (SMALL,)
) -> ShardRecord:
    """One shard of random latents and its index; `purpose` addresses the randomness.

    Args:
        shape: of the latents (c t h w); with several buckets, which clips have in turn, only its channels count.
    """
    samples = []
    for number in range(num_samples):
        bucket = buckets[number % len(buckets)]
        size = shape if len(buckets) == 1 else (shape[0], *bucket.latent_grid())
        latent = randomness.normal(0, purpose, [number], size)[0]
        samples.append((made_up_clip(number, bucket), save({"mean": latent})))
    shard, rows = write_shard(folder / "shard-00000.tar", samples, LATENT_MEMBER)
    write_index(folder, rows)
    return shard
