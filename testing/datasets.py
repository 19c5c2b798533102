"""Small clip datasets whose samples have one colour each."""

from pathlib import Path

import numpy as np

from data.curation.ledger import LedgerCounts, Rejection, reject, write_rejections
from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER, ClipRecord
from data.dataset.index import write_index
from data.dataset.manifest import Manifest, count_buckets
from data.dataset.shards import write_shard
from data.video.codec import encode_clip
from testing.records import made_up_clip

WIDE = Bucket(num_frames=9, height=32, width=64, fps=30000 / 1001)

SMALL = Bucket(num_frames=5, height=32, width=32, fps=8)


def record(number: int, bucket: Bucket = SMALL, **changes: object) -> ClipRecord:
    """The record of clip `number` with some fields replaced."""
    return made_up_clip(number, bucket).model_copy(update=changes)


def colour_clip(bucket: Bucket, colour: tuple[int, int, int]) -> bytes:
    """An encoded clip of one RGB colour."""
    frames = np.broadcast_to(np.array(colour, np.uint8), (bucket.num_frames, bucket.height, bucket.width, 3))
    return encode_clip(frames, bucket.fps)


def write_dataset(
    folder: Path, samples: list[tuple[ClipRecord, bytes]], rejections: tuple[Rejection, ...] = (), **changes: object
) -> Path:
    """A complete dataset of one shard whose quarantine holds `rejections`; `changes` replace fields of its manifest."""
    kind = str(changes.get("kind", "clips"))
    shard, rows = write_shard(folder / "shard-00000.tar", samples, VIDEO_MEMBER if kind == "clips" else LATENT_MEMBER)
    write_index(folder, rows)
    write_rejections(folder / "quarantine.jsonl", rejections)
    used = len({clip.source for clip, _ in samples})
    manifest = Manifest(
        kind=kind,
        fingerprint="",
        buckets=count_buckets(rows),
        num_samples=len(samples),
        shards=[shard],
        ledger=LedgerCounts(sources=used + len(rejections), shards=used, filtered=0, quarantine=len(rejections)),
    )
    text = manifest.model_copy(update=changes).model_dump_json()
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return folder


def write_mixed_dataset(folder: Path) -> Path:
    """A dataset of 40 clips in two buckets, a quarter of them for validation, with three rejected sources."""
    samples = []
    for number in range(40):
        bucket = WIDE if number % 5 == 0 else SMALL
        split = "validation" if number % 4 == 0 else "train"
        decoder = "pyav" if number < 10 else "decord"
        clip = record(number, bucket, split=split, decoder=decoder, caption="x" * (number + 1))
        samples.append((clip, colour_clip(bucket, (6 * number, 255 - 6 * number, 128))))
    rejections = (
        reject("a.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("b.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("c.mp4", "read", "empty_file", "the file is empty"),
    )
    return write_dataset(folder, samples, rejections)
