"""What a clip is called and what is known of it. Keys, splits and member names are defined here only."""

from hashlib import blake2b
from typing import Literal

from data.dataset.buckets import Bucket
from data.records import Record

VIDEO_MEMBER = "mp4"
CAPTION_MEMBER = "txt"
RECORD_MEMBER = "json"
LATENT_MEMBER = "latent.safetensors"
Split = Literal["train", "validation"]
Decoder = Literal["decord", "torchcodec", "pyav", "pillow"]  # who read the source; the last one images


class ClipRecord(Record):
    """One clip of a source video, as stored beside it in the shard."""

    key: str
    source: str  # path of the video inside the source folder, with forward slashes
    start_seconds: float  # presentation time of the clip's first frame in the source
    caption: str
    dataset: str  # of a mix, the one its source belongs to
    split: Split
    decoder: Decoder
    variant: str  # how it was augmented, such as flip; empty: not at all
    num_frames: int
    height: int
    width: int
    fps: float
    source_height: int  # of the source's frames, as shown: turned and mirrored as the file says
    source_width: int

    @property
    def bucket(self) -> Bucket:
        """Its shape."""
        return Bucket(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)


def clip_key(source: str, start_seconds: float, bucket: Bucket, variant: str = "") -> str:
    """Address of a clip: the same source, span, shape and augmentation always give the same 20 hex digits.

    Keys hold no dots, because WebDataset ends a key at the first one.
    """
    address = f"{source}\0{start_seconds:.6f}\0{bucket.model_dump_json()}"
    if variant:
        address += f"\0{variant}"
    return blake2b(address.encode(), digest_size=10).hexdigest()


def split_of(source: str, validation_fraction: float) -> Split:
    """Which side a source belongs to. Decided per source, so two clips of one video never part."""
    fraction = int.from_bytes(blake2b(source.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    return "validation" if fraction < validation_fraction else "train"
