"""The record of a clip, its key and its split. The names of the members of a sample are defined here only."""

from hashlib import blake2b
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from data.dataset.buckets import Bucket
from data.records import Record

VIDEO_MEMBER = "mp4"
CAPTION_MEMBER = "txt"
RECORD_MEMBER = "json"
LATENT_MEMBER = "latent.safetensors"
SETTINGS_MEMBER = "settings.json"  # of sampled clips: how each was made
OPTIONAL_MEMBERS = frozenset({VIDEO_MEMBER, LATENT_MEMBER, SETTINGS_MEMBER})
"""Of a sample beside its payload: shards of sampled clips hold both the clip and its latent."""
Split = Literal["train", "validation"]
# The library that read the source: pillow reads images, torchcodec did in older versions; sampled clips were not read.
Decoder = Literal["decord", "torchcodec", "pyav", "pillow", "sampled"]


class ClipRecord(Record):
    """The metadata of a clip, stored beside its payload in the shard."""

    key: str
    source: str  # name of the video: its path inside the source folder, with forward slashes
    start_seconds: float  # presentation time of the clip's first frame in the source
    caption: str
    dataset: str  # name of its dataset in a mix; empty where there is no mix
    split: Split
    decoder: Decoder
    variant: str  # how it was augmented, such as "flip"; empty if it was not
    num_frames: int
    height: int
    width: int
    fps: float
    source_height: int  # square pixels, after the rotation and mirroring that the file asks for, without cropped bars
    source_width: int
    measures: dict[str, float] | None = None  # what was measured of it (`data.filters.measures`), by name
    caption_by: str | None = None  # who wrote the caption, if a model did

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Clips without them are stored as they were before these fields existed."""
        absent = [name for name in ("measures", "caption_by") if getattr(self, name) is None]
        return {name: value for name, value in serialize(self).items() if name not in absent}

    @property
    def bucket(self) -> Bucket:
        """The shape of the clip."""
        return Bucket(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)


def clip_key(source: str, start_seconds: float, bucket: Bucket, variant: str = "") -> str:
    """20 hexadecimal digits that depend on the source, start, shape and augmentation only.

    Keys contain no dots, because WebDataset ends a key at the first dot.
    """
    address = f"{source}\0{start_seconds:.6f}\0{bucket.model_dump_json()}"
    if variant:
        address += f"\0{variant}"
    return blake2b(address.encode(), digest_size=10).hexdigest()


def split_of(source: str, validation_fraction: float) -> Split:
    """The split of a source, by a hash of its name: all clips of one video belong to the same split."""
    fraction = int.from_bytes(blake2b(source.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    return "validation" if fraction < validation_fraction else "train"
