"""The shapes of clips. Every clip of a bucket has the same frames, height, width and rate.

A dataset may have several: which one a scene is cut for follows from its picture and its length (`bucket_for`), and how
many clips make a batch from how many tokens they have (`batch_sizes`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data.records import Settings

SIDE_MULTIPLE = 16  # pixels: 8 for the autoencoder, 2 for the patches
MIN_GAIN = 0.01  # share of the picture, averaged over all sources, that one more aspect ratio has to save
MIN_FILL = 0.75  # of the pixels allowed, that a shape has to use


def nearest_clip_lengths(num_frames: int, temporal_factor: int = 4) -> tuple[int, int]:
    """The valid lengths (factor * k + 1) just below and just above `num_frames`."""
    below = max(0, (num_frames - 1) // temporal_factor) * temporal_factor + 1
    return below, below + temporal_factor


def check_clip_length(num_frames: int) -> None:
    """Refuse lengths that are not 4k + 1.

    Raises:
        ValueError: names the nearest lengths.
    """
    if num_frames % 4 != 1:
        below, above = nearest_clip_lengths(num_frames)
        raise ValueError(
            f"num_frames is {num_frames}, but a clip has 4k + 1 frames (the first alone, then fours): "
            f"use {below} or {above}"
        )


class Bucket(Settings):
    """One clip shape: `num_frames` frames of `height` x `width` pixels at `fps` frames per second.

    The autoencoder is causal with a stride of four in time, so the first frame stands alone and
    the others come in fours: `num_frames` must be 4k + 1. Images are clips of one frame.
    """

    num_frames: int = Field(default=17, ge=1)
    """TODO"""
    height: int = Field(default=64, ge=16)
    """TODO"""
    width: int = Field(default=64, ge=16)
    """TODO"""
    fps: float = Field(default=8.0, gt=0, le=240)
    """TODO"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_clip_length(self.num_frames)
        for side in ("height", "width"):
            pixels = getattr(self, side)
            if pixels % SIDE_MULTIPLE:
                low = pixels // SIDE_MULTIPLE * SIDE_MULTIPLE
                raise ValueError(
                    f"{side} is {pixels}, but it must be a multiple of 16 (8 for the autoencoder, 2 for the patches): "
                    f"use {low} or {low + SIDE_MULTIPLE}"
                )
        return self

    @property
    def name(self) -> str:
        """Such as 17x64x64@8."""
        return f"{self.num_frames}x{self.height}x{self.width}@{self.fps:g}"

    @property
    def duration_seconds(self) -> float:
        """Time from the first to the last frame."""
        return (self.num_frames - 1) / self.fps

    @property
    def num_latent_frames(self) -> int:
        """Frames of its latent."""
        return (self.num_frames - 1) // 4 + 1

    @property
    def num_latents(self) -> int:
        """Positions of its latent; the tokens of the DiT are in proportion to them."""
        return self.num_latent_frames * (self.height // 8) * (self.width // 8)


@dataclass(frozen=True)
class SourceShape:
    """What a source offers: pixels as shown, and seconds of video (0: an image)."""

    height: int
    width: int
    seconds: float


class BucketChoice(Settings):
    """How buckets are chosen from the sources: the aspect ratios that lose least of the pictures, and these lengths."""

    pixels: int = Field(default=4096, ge=SIDE_MULTIPLE**2)
    """Of a frame, at most."""
    num_frames: tuple[int, ...] = (17,)
    """Lengths on offer; 1 takes images."""
    fps: float = Field(default=8.0, gt=0, le=240)
    """TODO"""
    max_aspects: int = Field(default=3, ge=1)
    """TODO"""
    side_multiple: int = Field(default=SIDE_MULTIPLE, ge=SIDE_MULTIPLE, multiple_of=SIDE_MULTIPLE)
    """TODO"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.num_frames:
            raise ValueError("num_frames is empty; name at least one length, such as [17]")
        for length in self.num_frames:
            check_clip_length(length)
        if self.pixels < self.side_multiple**2:
            raise ValueError(f"pixels is {self.pixels}: not even a square of {self.side_multiple} has so few")
        return self


def cropped_share(shape: SourceShape, bucket: Bucket) -> float:
    """The share of a picture that is cut off to fill the bucket, in [0, 1)."""
    ratio = (shape.width * bucket.height) / (shape.height * bucket.width)
    return 1 - min(ratio, 1 / ratio)


def bucket_for(shape: SourceShape, buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket a scene is cut for; None where it is too short for all.

    Of those it is long enough for, the one that crops least, then enlarges least, then is longest, then is largest.
    """

    def cost(bucket: Bucket) -> tuple[float, float, int, int, str]:
        enlargement = max(1.0, bucket.height / shape.height, bucket.width / shape.width)
        size = bucket.height * bucket.width
        return (round(cropped_share(shape, bucket), 6), round(enlargement, 6), -bucket.num_frames, -size, bucket.name)

    return min((bucket for bucket in buckets if bucket.duration_seconds <= shape.seconds), key=cost, default=None)


def choose_buckets(shapes: Sequence[SourceShape], choice: BucketChoice) -> tuple[Bucket, ...]:
    """Buckets for these sources, the one with most of them first.

    Aspect ratios are added one by one, each time the one that saves most of what is cropped, until there are enough or
    the next would save less than `MIN_GAIN`. A bucket without a source is left out.

    Raises:
        ValueError: there are no sources.
    """
    if not shapes:
        raise ValueError("there is no source to choose buckets from")
    shortest, step = min(choice.num_frames), choice.side_multiple
    heights = range(step, choice.pixels // step + 1, step)
    sides = [(height, choice.pixels // height // step * step) for height in heights]
    sides = [(height, width) for height, width in sides if width]
    most = max(height * width for height, width in sides)  # what `pixels` leaves of multiples of the step
    candidates = [
        Bucket(num_frames=shortest, height=height, width=width, fps=choice.fps)
        for height, width in sides
        if height * width >= MIN_FILL * most
    ]
    aspects, counts = np.unique([round(log(shape.width / shape.height), 6) for shape in shapes], return_counts=True)
    lost = np.ones(len(aspects))  # of each picture, by the best bucket so far

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
        global_batch: of the bucket with most tokens. The others hold as many clips as have no more tokens.
        multiple: the others' batches are rounded down to multiples of it (or up to the first), so that workers can
            share them.
    """
    by_name = {bucket.name: bucket for bucket in buckets}
    largest = max((bucket.num_latents for bucket in by_name.values()), default=0)
    return {
        name: global_batch
        if bucket.num_latents == largest
        else max(1, global_batch * largest // bucket.num_latents // multiple) * multiple
        for name, bucket in by_name.items()
    }


def describe_buckets(buckets: Sequence[Bucket]) -> str:
    """Such as "17 frames, 64 x 64, 8 fps", for each."""
    return " and ".join(f"{b.num_frames} frames, {b.height} x {b.width}, {b.fps:g} fps" for b in buckets)
