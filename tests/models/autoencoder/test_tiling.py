"""Tiles cover a frame, their weights add up to one, and together they are the whole frame."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.tiling import Tiling, blend_weights, decode_tiled, encode_tiled, tile_starts
from models.autoencoder.wan import FrameAttention
from testing.clips import make_network
from testing.wan import SMALL_SETTINGS, make_pair

# Latent positions that a value of the network below depends on, to each side: 6 convolutions at an eighth of the
# pixels' height and width, 3 at a quarter.
NETWORK, REACH = make_network(AutoencoderConfig(latent_channels=4, width=8, deep_width=16)), 8
EXACT = Tiling(side=21, overlap=2 * REACH + 1, margin=REACH)

sizes = st.integers(2, 40).flatmap(
    lambda side: st.integers(1, side - 1).flatmap(
        lambda overlap: st.builds(
            Tiling, side=st.just(side), overlap=st.just(overlap), margin=st.integers(0, (overlap - 1) // 2)
        )
    )
)


@settings(deadline=None)
@given(length=st.integers(1, 200), tiling=sizes)
def test_the_fewest_tiles_cover_the_length(length, tiling):
    starts = tile_starts(length, tiling.side, tiling.overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tiling.side)
    steps = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert all(1 <= step <= tiling.side - tiling.overlap for step in steps)
    assert max(steps, default=0) - min(steps, default=0) <= 1
    fewer = len(starts) - 1
    assert fewer == 0 or fewer * tiling.side - (fewer - 1) * tiling.overlap < length


@settings(deadline=None)
@given(length=st.integers(1, 100), tiling=sizes, scale=st.integers(1, 8))
def test_weights_add_up_to_one(length, tiling, scale):
    total, side = torch.zeros(scale * length), scale * min(length, tiling.side)
    for start, weights in blend_weights(length, tiling, scale):
        assert weights.shape == (side,)
        assert (weights >= 0).all()
        unused = scale * tiling.margin
        assert start == 0 or not weights[:unused].any()
        assert start + tiling.side >= length or not weights[side - unused :].any()
        total[scale * start : scale * start + side] += weights
    torch.testing.assert_close(total, torch.ones_like(total))


def test_weights_are_linear_in_the_overlap():
    (first, rest), (second, _) = blend_weights(6, Tiling(side=4, overlap=2), scale=2)
    assert (first, second) == (0, 2)
    torch.testing.assert_close(rest, torch.tensor([1, 1, 1, 1, 7 / 8, 5 / 8, 3 / 8, 1 / 8]))


@pytest.mark.parametrize("sizes", [(8, 8, 0), (8, 4, 2), (8, 0, 0), (8, 4, -1)])
def test_sizes_that_cannot_be_blended_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot be blended"):
        Tiling(*sizes)


def test_tiles_with_a_margin_of_the_reach_are_the_whole_frame():
    latents = torch.randn(1, 4, 3, 30, 26)
    whole = NETWORK.decode(latents)
    torch.testing.assert_close(decode_tiled(NETWORK, latents, EXACT, most_frames=8), whole, rtol=1e-5, atol=1e-5)
    narrower = Tiling(EXACT.side, EXACT.overlap, margin=2)
    assert (decode_tiled(NETWORK, latents, narrower, most_frames=8) - whole).abs().max() > 1e-4
    pixels = torch.rand(1, 3, 5, 8 * 26, 8 * 30) * 2 - 1
    encoded = NETWORK.encode(pixels).mean
    torch.testing.assert_close(encode_tiled(NETWORK, pixels, EXACT, most_frames=4), encoded, rtol=1e-5, atol=1e-5)


def test_one_tile_is_the_whole_frame_bit_for_bit():
    latents = torch.randn(2, 4, 2, 6, 5)
    assert torch.equal(decode_tiled(NETWORK, latents, Tiling(), most_frames=8), NETWORK.decode(latents))
    pixels = torch.rand(2, 3, 5, 48, 40)
    assert torch.equal(encode_tiled(NETWORK, pixels, Tiling(), most_frames=8), NETWORK.encode(pixels).mean)


@pytest.mark.parametrize("version", SMALL_SETTINGS)
def test_tiles_of_wan_differ_by_their_attention_alone(version):
    """Exact without attention, for a margin of its convolutions' reach; with it, 20 dB and more under the signal.

    The reach in its decoder, with two blocks a level: 9 convolutions at the latents' resolution, then 5 at twice and 5
    at four times that, and 6 at eight times: 13.5 positions.
    """
    _, network = make_pair(SMALL_SETTINGS[version])
    latents = torch.randn(1, 4, 1, 34, 4, generator=torch.Generator().manual_seed(0))
    tiling = Tiling(side=32, overlap=29, margin=14)

    def difference() -> torch.Tensor:
        with torch.no_grad():
            whole = network.decode(latents)
        return (decode_tiled(network, latents, tiling, most_frames=4) - whole).std() / whole.std()

    assert 1e-5 < difference() < 0.1
    for layer in network.modules():
        if isinstance(layer, FrameAttention):
            torch.nn.init.zeros_(layer.out.weight)
    assert difference() < 1e-5


class LargestActivation(TorchDispatchMode):
    """The most values of any tensor that is made while it is on, but for pixels, which have three channels."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.ndim == 5 and made.shape[1] != 3:
            self.size = max(self.size, made.numel())
        return made


def test_memory_is_that_of_a_tile():
    def largest(height: int, width: int) -> int:
        with LargestActivation() as activation:
            decode_tiled(NETWORK, torch.randn(1, 4, 3, height, width), Tiling(side=8, overlap=2), most_frames=4)
        return activation.size

    assert largest(8, 8) == largest(20, 26)
