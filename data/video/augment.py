"""Augmentation at ingestion: further clips of the same span of a video."""

from typing import Literal

import numpy as np

from data.dataset.buckets import Bucket, SourceShape, cropped_share
from data.records import Settings

MIN_OVERHANG = 0.05  # cropped share of the picture below which several crops would be nearly equal


class AugmentConfig(Settings):
    """Further clips of each span of the training split. Each is a sample of its own, encoded once."""

    flip: bool = False
    """Also make a horizontally mirrored copy of each clip; wrong where captions mention left or right."""
    crops: Literal[1, 3, 5] = 1
    """How many crops are taken of a video whose aspect ratio differs from its bucket's.

    1 is the centre; 3 and 5 are spread evenly from one end to the other.
    """

    def crop_positions(self, shape: SourceShape, bucket: Bucket) -> list[float]:
        """Positions of the crops along the side that is cropped, from 0 (left, top) to 1 (right, bottom).

        Only the centre where less than `MIN_OVERHANG` of the picture would be cropped.
        """
        if self.crops == 1 or cropped_share(shape, bucket) < MIN_OVERHANG:
            return [0.5]
        return np.linspace(0, 1, self.crops).tolist()


AS_IT_IS = AugmentConfig()
