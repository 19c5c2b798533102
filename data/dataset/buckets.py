"""Clip shapes (buckets): every clip of a bucket has the same number of frames, height, width and frame rate.

A dataset may have several buckets. `bucket_for` assigns one to each scene by its aspect ratio and its length, and
`batch_sizes` says how many clips of each make a batch with about the same number of tokens.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data.dataset.compression import COMPRESSION, Compression
from data.records import Settings

_NAME = re.compile(r"([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})@([0-9]{1,9}(?:\.[0-9]{1,9})?)")
MAX_SIDE = 2**15  # pixels
SIDE_MULTIPLE = 2 * COMPRESSION.spatial_factor  # pixels: the latent's sides are even, for patches of 2 x 2
MIN_GAIN = 0.01  # share of the picture, averaged over the sources, that another aspect ratio must keep from cropping
MIN_FILL = 0.75  # share of the allowed pixels that a shape must use


class Bucket(Settings):
    """A clip shape: `num_frames` frames of `height` x `width` pixels at `fps` frames per second.

    The autoencoder encodes the first frame alone and the others in groups of four, so `num_frames` is 4k + 1. Images
    are clips of one frame.
    """

    num_frames: int = Field(default=17, ge=1)
    """Frames of a clip: 4k + 1, such as 1 (images), 17 or 49."""
    height: int = Field(default=64, ge=SIDE_MULTIPLE, le=MAX_SIDE)
    """Height in pixels, a multiple of 16."""
    width: int = Field(default=64, ge=SIDE_MULTIPLE, le=MAX_SIDE)
    """Width in pixels, a multiple of 16."""
    fps: float = Field(default=8.0, gt=0, le=240)
    """Frame rate in frames per second; videos of another rate are resampled to it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        COMPRESSION.check_length(self.num_frames)
        for side in ("height", "width"):
            pixels = getattr(self, side)
            if pixels % SIDE_MULTIPLE:
                low = pixels // SIDE_MULTIPLE * SIDE_MULTIPLE
                raise ValueError(
                    f"{side} is {pixels}, but it must be a multiple of {SIDE_MULTIPLE} ({COMPRESSION.spatial_factor} "
                    f"for the autoencoder, 2 for the patches): use {low} or {low + SIDE_MULTIPLE}"
                )
        return self

    @property
    def name(self) -> str:
        """Such as 17x64x64@8."""
        return f"{self.num_frames}x{self.height}x{self.width}@{self.fps:g}"

    @classmethod
    def of_name(cls, name: str) -> Self:
        """The inverse of `name`.

        Raises:
            ValueError: it is not of that form, or no shape of a clip (a ValidationError that names the field).
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError("write frames x height x width @ frames per second, such as 17x64x64@8")
        num_frames, height, width, fps = found.groups()
        return cls(num_frames=int(num_frames), height=int(height), width=int(width), fps=float(fps))

    @property
    def duration_seconds(self) -> float:
        """Time from the first to the last frame."""
        return (self.num_frames - 1) / self.fps

    def latent_grid(self, compression: Compression = COMPRESSION) -> tuple[int, int, int]:
        """Positions (t, h, w) of a clip's latent.

        Raises:
            ValueError: an autoencoder of these strides does not take the clip.
        """
        return compression.latent_grid(self.num_frames, self.height, self.width)

    @property
    def num_latent_positions(self) -> int:
        """All positions of a clip's latent; the number of tokens of any network is proportional to it."""
        t, h, w = self.latent_grid()
        return t * h * w


@dataclass(frozen=True)
class SourceShape:
    """Size of a source in displayed pixels, and its duration in seconds (0: an image)."""

    height: int
    width: int
    seconds: float


class BucketChoice(Settings):
    """Buckets chosen from the sources: the aspect ratios that crop least, each with every length of `num_frames`."""

    pixels: int = Field(default=4096, ge=SIDE_MULTIPLE**2)
    """Most pixels of a frame (height x width)."""
    num_frames: tuple[int, ...] = (17,)
    """Clip lengths in frames, each 4k + 1; a scene gets the longest that it fills, and 1 takes images."""
    fps: float = Field(default=8.0, gt=0, le=240)
    """Frame rate in frames per second of every bucket."""
    max_aspects: int = Field(default=3, ge=1)
    """Most aspect ratios; fewer are chosen where another would save less than 1% of the pictures from cropping."""
    side_multiple: int = Field(default=SIDE_MULTIPLE, ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)
    """Height and width are multiples of it, in pixels; itself a multiple of 16."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.num_frames:
            raise ValueError("num_frames is empty; name at least one length, such as [17]")
        for length in self.num_frames:
            COMPRESSION.check_length(length)
        if self.pixels < self.side_multiple**2:
            raise ValueError(f"pixels is {self.pixels}: not even a square of {self.side_multiple} has so few")
        return self


def cropped_share(shape: SourceShape, bucket: Bucket) -> float:
    """The share of a picture that is cropped to fill the bucket, in [0, 1)."""
    ratio = (shape.width * bucket.height) / (shape.height * bucket.width)
    return 1 - min(ratio, 1 / ratio)


def bucket_for(shape: SourceShape, buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket for the clips of a scene; None if the scene is too short for all.

    Of the buckets it is long enough for, the one that crops least; of equal ones that which enlarges least, then the
    longest, then the largest.
    """

    def cost(bucket: Bucket) -> tuple[float, float, int, int, str]:
        enlargement = max(1.0, bucket.height / shape.height, bucket.width / shape.width)
        size = bucket.height * bucket.width
        return (round(cropped_share(shape, bucket), 6), round(enlargement, 6), -bucket.num_frames, -size, bucket.name)

    return min((bucket for bucket in buckets if bucket.duration_seconds <= shape.seconds), key=cost, default=None)


def choose_buckets(shapes: Sequence[SourceShape], choice: BucketChoice) -> tuple[Bucket, ...]:
    """Buckets for these sources, ordered by their number of sources, most first.

    Aspect ratios are added greedily, each time the one that reduces cropping most, until there are `max_aspects` or
    the next would gain less than `MIN_GAIN`. A bucket without a source is left out.

    Raises:
        ValueError: there are no sources.
    """
    if not shapes:
        raise ValueError("there is no source to choose buckets from")
    shortest, step = min(choice.num_frames), choice.side_multiple
    heights = range(step, choice.pixels // step + 1, step)
    sides = [(height, choice.pixels // height // step * step) for height in heights]
    sides = [(height, width) for height, width in sides if width]
    most = max(height * width for height, width in sides)  # the largest shape whose sides are multiples of the step
    candidates = [
        Bucket(num_frames=shortest, height=height, width=width, fps=choice.fps)
        for height, width in sides
        if height * width >= MIN_FILL * most
    ]
    aspects, counts = np.unique([round(log(shape.width / shape.height), 6) for shape in shapes], return_counts=True)
    lost = np.ones(len(aspects))  # share of each picture that its best bucket so far crops

    def lost_with(candidate: Bucket) -> np.ndarray:
        return np.minimum(lost, 1 - np.exp(-abs(aspects - log(candidate.width / candidate.height))))

    def cost(candidate: Bucket) -> tuple[float, int, str]:
        mean = float(np.average(lost_with(candidate), weights=counts))
        return round(mean, 6), -candidate.height * candidate.width, candidate.name

    chosen: list[Bucket] = []
    while candidates and len(chosen) < choice.max_aspects:
        best = min(candidates, key=cost)
        if chosen and float(np.average(lost, weights=counts)) - cost(best)[0] < MIN_GAIN:
            break
        chosen.append(best)
        candidates.remove(best)
        lost = lost_with(best)
    offered = [
        aspect.model_copy(update={"num_frames": length}) for aspect in chosen for length in sorted(choice.num_frames)
    ]
    taken = Counter(bucket for shape in shapes if (bucket := bucket_for(shape, offered)) is not None)
    return tuple(sorted(taken or offered, key=lambda bucket: (-taken[bucket], bucket.name)))


def batch_sizes(buckets: Iterable[Bucket], global_batch: int, multiple: int) -> dict[str, int]:
    """Clips in a global batch of each bucket, by name.

    Args:
        global_batch: clips in a batch of the bucket with most tokens. Batches of the others have as many clips as give
            at most that number of tokens.
        multiple: the others' batches are rounded down to a multiple of it (at least one), so that workers can share
            them evenly.
    """
    by_name = {bucket.name: bucket for bucket in buckets}
    largest = max((bucket.num_latent_positions for bucket in by_name.values()), default=0)
    return {
        name: global_batch
        if bucket.num_latent_positions == largest
        else max(1, global_batch * largest // bucket.num_latent_positions // multiple) * multiple
        for name, bucket in by_name.items()
    }


def describe_buckets(buckets: Sequence[Bucket]) -> str:
    """Such as "17 frames, 64 x 64, 8 fps", for each."""
    return " and ".join(f"{b.num_frames} frames, {b.height} x {b.width}, {b.fps:g} fps" for b in buckets)
