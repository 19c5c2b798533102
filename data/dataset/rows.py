"""The rows of an index, and what kind of column each of their fields is."""

from dataclasses import dataclass, fields
from typing import Protocol, get_type_hints

from data.dataset.buckets import Bucket
from data.dataset.clip import Decoder, Split


class PayloadLocation(Protocol):
    """Where the payload of a sample is stored: a row, or what of a row is needed to read it."""

    @property
    def key(self) -> str:
        """Of the sample."""
        ...

    @property
    def shard(self) -> str:
        """Name of the file."""
        ...

    @property
    def offset(self) -> int:
        """Of the payload from the start of the shard, in bytes."""
        ...

    @property
    def size(self) -> int:
        """Of the payload, in bytes."""
        ...

    @property
    def crc32(self) -> int:
        """Of the payload."""
        ...


@dataclass(frozen=True)
class IndexRow:
    """A sample of a dataset: its location (a `PayloadLocation`) and its metadata."""

    key: str
    shard: str
    offset: int
    size: int
    crc32: int
    caption_offset: int
    caption_size: int
    record_offset: int
    record_size: int
    caption: str
    dataset: str  # name of its dataset in a mix; empty where there is no mix
    bucket: str  # name of its shape, such as 17x64x64@8
    split: Split
    source: str
    start_seconds: float  # of the clip in its source, after its first frame
    end_seconds: float
    decoder: Decoder
    variant: str  # how it was augmented; empty if it was not
    num_frames: int
    height: int
    width: int
    fps: float
    source_height: int  # square pixels, after the rotation and mirroring that the file asks for
    source_width: int


NAMES = tuple(field.name for field in fields(IndexRow))
NUMBERS: dict[str, type] = {name: kind for name, kind in get_type_hints(IndexRow).items() if kind in (int, float)}
DISTINCT_TEXTS = ("key", "caption", "source")  # mostly distinct in a dataset
LABELS = tuple(name for name in NAMES if name not in NUMBERS and name not in DISTINCT_TEXTS)
"""Text columns that repeat a few values."""


def shape_of(row: IndexRow) -> Bucket:
    """The shape of a sample."""
    return Bucket(num_frames=row.num_frames, height=row.height, width=row.width, fps=row.fps)
