"""What every decoder offers: the presentation time of each frame of a file, and the pixels of some of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from data.dataset.clip import Decoder
from data.video.resize import Size

Frame = UInt8[np.ndarray, "h w 3"]


class UnfitDecoderError(Exception):
    """A decoder does not return the frames that the file's time stamps promise; another decoder may."""


class ReadFrames(Protocol):
    """Reads frames of one video."""

    def __call__(self, indices: list[int], size: Size | None = None) -> Iterator[Frame]:
        """Upright frames, each when it is asked for; only one is held.

        Args:
            indices: increasing.
            size: height and width to scale them to (`reading_size`); None: their own, in which pixels are as stored
                and not always square. Decoders that cannot scale ignore it, and so do all for transparent frames.
        """
        ...


@dataclass(frozen=True)
class Timeline:
    """The frames of a video as one decoder sees them."""

    times_seconds: np.ndarray  # presentation time of each frame, strictly increasing
    read: ReadFrames
    decoder: Decoder
    # Called once all frames that are needed have been read: raises VideoError if none of them shows anything.
    check: Callable[[], None] = field(default=lambda: None)
