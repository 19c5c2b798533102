"""The shape of a clip. Every clip of a bucket has the same frames, height, width and rate."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


def nearest_clip_lengths(num_frames: int, temporal_factor: int = 4) -> tuple[int, int]:
    """The valid lengths (factor * k + 1) just below and just above `num_frames`."""
    below = max(0, (num_frames - 1) // temporal_factor) * temporal_factor + 1
    return below, below + temporal_factor


class Bucket(BaseModel):
    """One clip shape: `num_frames` frames of `height` x `width` pixels at `fps` frames per second.

    The autoencoder is causal with a stride of four in time, so the first frame stands alone and
    the others come in fours: `num_frames` must be 4k + 1. Images are clips of one frame.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_frames: int = Field(default=17, ge=1)
    height: int = Field(default=64, ge=16)
    width: int = Field(default=64, ge=16)
    fps: float = Field(default=8.0, gt=0, le=240)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_frames % 4 != 1:
            below, above = nearest_clip_lengths(self.num_frames)
            raise ValueError(
                f"num_frames is {self.num_frames}, but a clip has 4k + 1 frames (the first alone, then fours): "
                f"use {below} or {above}"
            )
        for side in ("height", "width"):
            pixels = getattr(self, side)
            if pixels % 16:
                low = pixels // 16 * 16
                raise ValueError(
                    f"{side} is {pixels}, but it must be a multiple of 16 (8 for the autoencoder, 2 for the patches): "
                    f"use {low} or {low + 16}"
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
