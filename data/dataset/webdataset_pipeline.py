"""A dataset of clips as a WebDataset pipeline, for training code other than this project's.

Trainings here read through the index (`data/stream/loader.py`), which resumes exactly; shards are plain WebDataset.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from webdataset.compat import FluidInterface, WebDataset

from data.dataset.clip import CAPTION_MEMBER, RECORD_MEMBER, VIDEO_MEMBER, ClipRecord, Split
from data.dataset.manifest import read_manifest
from data.errors import DatasetError
from data.records import Frames
from data.video.codec import decode_clip


@dataclass(frozen=True)
class CaptionedClip:
    """A sample of a dataset of clips."""

    frames: Frames  # uint8 (t h w c)
    caption: str
    record: ClipRecord


def open_as_webdataset(dataset_dir: Path, split: Split | None = None) -> FluidInterface:
    """A pipeline over the clips of a dataset, in the order of its shards; shuffle, batch and split it as any other.

    Args:
        split: only the clips of this split; None: all.

    Raises:
        DatasetError: the folder holds no finished dataset, or one of latents.
    """
    manifest = read_manifest(dataset_dir)
    if manifest.kind != "clips":
        raise DatasetError(f"{dataset_dir} holds {manifest.kind}; name the folder of a dataset of clips")
    urls = [str((dataset_dir / shard.name).resolve()) for shard in manifest.shards if shard.num_samples]
    pipeline: FluidInterface = WebDataset(urls, shardshuffle=False)
    if split is not None:
        pipeline = pipeline.select(lambda sample: _record(sample).split == split)
    return pipeline.map(_decoded)


def _record(sample: dict[str, Any]) -> ClipRecord:
    return ClipRecord.model_validate_json(sample[RECORD_MEMBER])


def _decoded(sample: dict[str, Any]) -> CaptionedClip:
    return CaptionedClip(decode_clip(sample[VIDEO_MEMBER]), sample[CAPTION_MEMBER].decode(), _record(sample))
