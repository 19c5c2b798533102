"""Latents of many clips are decoded in groups of bounded size."""

import numpy as np
import torch

from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import to_frames
from testing.clips import NETWORK


def test_latents_of_many_clips_are_decoded_some_at_a_time():
    latents = torch.randn(5, 4, 4, 2, 3)  # 13 frames each
    whole = [to_frames(pixels) for pixels in NETWORK.decode(latents)]
    for most in (4, 8, 12, 28, 512):
        clips = decode_clips(NETWORK, latents, most)
        for clip, expected in zip(clips, whole, strict=True):
            assert abs(clip.astype(int) - expected).max() <= 1  # a value on the edge between two levels
    assert all(np.array_equal(a, b) for a, b in zip(decode_clips(NETWORK, latents), whole, strict=True))
