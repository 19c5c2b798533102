"""The cache of a clip that passes in chunks."""

import torch

from models.autoencoder.causal import CausalCache
from testing.clips import NETWORK


def test_the_cache_holds_two_frames_for_each_convolution_over_time():
    cache, kept = CausalCache(), []
    for length in (9, 8, 8, 4):
        NETWORK.encode(torch.rand(1, 3, length, 32, 32), cache)
        assert {frames.shape for frames in cache.frames.values()} == {(1, 16, 2, 4, 4)}
        kept.append(sum(frames.untyped_storage().nbytes() for frames in cache.frames.values()))
    # Two blocks at each of two resolutions in time, 16 channels of 4 x 4 numbers of 4 bytes.
    assert kept == [4 * 2 * 16 * 4 * 4 * 4] * 4
