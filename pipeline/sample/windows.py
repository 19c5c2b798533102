"""Clips longer than those of training, made in windows, each of which begins with the last frames of the one before.

A window has the length of a clip of training. What it shares with the window before is given to the network (Ho et al.
2022, "Video Diffusion Models", section 3.1; Chen et al. 2024, "Diffusion Forcing"), encoded anew from the frames, whose
first then has a latent frame of its own, as that of a clip has. Where windows overlap, one is blended into the next.
Memory is that of one window, however long the clip is.
"""

from dataclasses import dataclass

import numpy as np

from data.dataset.compression import Compression
from data.records import Frames
from models.autoencoder.tiling import tile_starts


@dataclass(frozen=True)
class Window:
    """A part of a clip that is sampled at once."""

    number: int = 0
    first_latent: int = 0
    """Of the clip, in latent frames."""
    num_shared: int = 0
    """Latent frames that it shares with the window before."""
    is_last: bool = True

    @property
    def is_first(self) -> bool:
        """Whether the clip begins with it."""
        return self.number == 0

    def first_new_seconds(self, compression: Compression, fps: float) -> float:
        """When its first frame that no earlier window has is shown, after the beginning of the clip."""
        latent = self.first_latent + self.num_shared
        return 0.0 if latent == 0 else compression.num_frames(latent) / fps


WHOLE = Window()
"""The only window of a clip that is not longer than those of training."""


def windows_of(num_latent: int, side: int, num_shared: int) -> list[Window]:
    """The fewest windows that cover a clip, in nearly equal steps; the last ends with it.

    Args:
        num_latent: latent frames of the clip, at least `side`.
        side: those of a window.
        num_shared: those that neighbours share at least; between 1 and `side` - 1.
    """
    starts = tile_starts(num_latent, side, num_shared)
    befores = [None, *starts]
    return [
        Window(
            number,
            first_latent=start,
            num_shared=0 if before is None else before + side - start,
            is_last=number == len(starts) - 1,
        )
        for number, (before, start) in enumerate(zip(befores, starts, strict=False))
    ]


def blended(before: Frames, after: Frames) -> Frames:
    """The frames of a window, with its first blended with the last of the window before, which are nearly the same."""
    num_shared = len(before)
    weights = (np.arange(1, num_shared + 1, dtype=np.float32) / (num_shared + 1))[:, None, None, None]
    shared = (before * (1 - weights) + after[:num_shared] * weights).round().astype(np.uint8)
    return np.concatenate([shared, after[num_shared:]])
