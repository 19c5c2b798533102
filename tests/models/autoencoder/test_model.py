"""Clips in chunks: what the autoencoder makes of the whole, in memory that does not grow with their length."""

from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from data.dataset.compression import COMPRESSION
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder, psnr_db, squared_error
from models.autoencoder.protocol import LatentDistribution
from testing.clips import NETWORK, SMALL_AUTOENCODER
from testing.tensors import LargestTensor

SMALL_AE = AutoencoderConfig(latent_channels=4, width=8, deep_width=16)


def test_autoencoder_shapes():
    network = Autoencoder(SMALL_AE)
    pixels = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    posterior = network.encode(pixels)
    assert posterior.mean.shape == (2, *SMALL_AE.latent_shape(9, 32, 48)) == (2, 4, 3, 4, 6)
    assert network.decode(posterior.mean).shape == pixels.shape


def test_autoencoder_refuses_lengths_that_are_not_4k_plus_1():
    with pytest.raises(ValueError, match=r"4k \+ 1"):
        Autoencoder(SMALL_AE).encode(torch.zeros(1, 3, 8, 32, 32))


def test_autoencoder_is_causal():
    """Frames 5..8 do not touch the latents of frames 0..4, nor do later latents touch earlier frames."""
    torch.manual_seed(0)
    network = Autoencoder(SMALL_AE)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    one = torch.rand(1, 3, 9, 32, 32)
    other = one.clone()
    other[:, :, 5:] = torch.rand(1, 3, 4, 32, 32)
    z_one, z_other = network.encode(one).mean, network.encode(other).mean
    torch.testing.assert_close(z_one[:, :, :2], z_other[:, :, :2])
    assert not torch.allclose(z_one[:, :, 2], z_other[:, :, 2])
    mixed = torch.cat([z_one[:, :, :2], z_one[:, :, 2:] + 1], dim=2)
    x_one, x_mixed = network.decode(z_one), network.decode(mixed)
    torch.testing.assert_close(x_one[:, :, :5], x_mixed[:, :, :5])
    assert not torch.allclose(x_one[:, :, 5:], x_mixed[:, :, 5:])


def test_a_clip_starts_like_its_own_first_frames():
    """Encoding 5 of 9 frames gives the first 2 of 3 latents: an image is a clip of one frame."""
    network = Autoencoder(SMALL_AE)
    pixels = torch.rand(2, 3, 9, 32, 32)
    whole, start, image = (network.encode(pixels[:, :, :n]).mean for n in (9, 5, 1))
    torch.testing.assert_close(whole[:, :, :2], start, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole[:, :, :1], image, rtol=1e-4, atol=1e-5)


def test_kl_against_torch():
    mean, log_variance = torch.randn(2, 3, 4, 1, 2, 2).unbind(0)
    ours = LatentDistribution(mean, log_variance).kl()
    theirs = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(ours, theirs)
    assert LatentDistribution(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)).kl().item() == 0


def test_psnr():
    """An error of a tenth of the range is 20 dB."""
    assert psnr_db(squared_error(torch.zeros(1, 8), torch.full((1, 8), 0.2))).item() == pytest.approx(20.0, abs=1e-4)


TOLERANCE = 1e-5  # of values of order one: kernels sum in another order for another length


def encode(pixels: torch.Tensor, lengths: Iterable[int]) -> torch.Tensor:
    return torch.cat(list(NETWORK.encode_frames(pixels.split(list(lengths), dim=2))), dim=2)


def decode(latents: torch.Tensor, lengths: Iterable[int]) -> torch.Tensor:
    return torch.cat(list(NETWORK.decode_latents(latents.split(list(lengths), dim=2))), dim=2)


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 4), others=st.lists(st.integers(1, 4), max_size=5), seed=st.integers(0, 2**31))
def test_chunks_of_any_lengths_give_what_the_whole_gives(first, others, seed):
    lengths = [4 * first + 1, *(4 * k for k in others)]
    pixels = torch.rand(2, 3, sum(lengths), 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latents = NETWORK.encode(pixels).mean
    torch.testing.assert_close(encode(pixels, lengths), latents, rtol=0, atol=TOLERANCE)
    decoded = decode(latents, [first + 1, *others])
    torch.testing.assert_close(decoded, NETWORK.decode(latents), rtol=0, atol=TOLERANCE)
    assert decoded.shape == pixels.shape


@pytest.mark.parametrize("num_frames", [1, 17])
def test_one_chunk_is_the_whole_bit_for_bit(num_frames):
    pixels = torch.rand(2, 3, num_frames, 32, 32) * 2 - 1
    latents = NETWORK.encode(pixels).mean
    assert torch.equal(encode(pixels, [num_frames]), latents)
    assert torch.equal(decode(latents, [latents.shape[2]]), NETWORK.decode(latents))


def test_bfloat16_differs_by_its_own_rounding_alone():
    pixels = torch.rand(1, 3, 33, 32, 32) * 2 - 1
    exact = NETWORK.encode(pixels).mean
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = NETWORK.encode(pixels).mean, encode(pixels, [9, 8, 16])
    assert (chunked - whole).abs().max() <= (whole - exact).abs().max()


def test_clips_may_take_turns():
    """What is kept of the past belongs to a clip and not to the network."""
    one, other = torch.rand(2, 1, 3, 9, 16, 16).unbind()
    steps = [NETWORK.encode_frames(clip.split([5, 4], dim=2)) for clip in (one, other)]
    turns = list(zip(*steps, strict=True))
    for clip, chunks in zip((one, other), zip(*turns, strict=True), strict=True):
        assert torch.equal(torch.cat(chunks, dim=2), encode(clip, [5, 4]))


def test_chunks_come_out_as_they_go_in():
    taken = []

    def chunks() -> Iterator[torch.Tensor]:
        for number, length in enumerate([5, 4, 4]):
            taken.append(number)
            yield torch.rand(1, 3, length, 16, 16)

    frames = []
    for pixels in NETWORK.decode_latents(NETWORK.encode_frames(chunks())):
        frames.append(pixels.shape[2])
        assert taken == list(range(len(frames)))
    assert frames == [5, 4, 4]


def test_nothing_is_kept_for_backward():
    network = Autoencoder(SMALL_AUTOENCODER)
    (latents,) = network.encode_frames([torch.rand(1, 3, 5, 16, 16)])
    assert not latents.requires_grad
    assert network.encode(torch.rand(1, 3, 5, 16, 16)).mean.requires_grad  # and the caller's own mode is as it was
    with torch.inference_mode():
        assert encode(torch.rand(1, 3, 9, 16, 16), [5, 4]).is_inference()


@pytest.mark.parametrize(("lengths", "message"), [([8], "takes 4k"), ([5, 3], "of 3 frames"), ([5, 4, 5], "of 5")])
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        encode(torch.rand(1, 3, sum(lengths), 16, 16), lengths)


def largest_tensor(num_frames: int, most: int) -> tuple[int, int]:
    """In bytes, when a clip is encoded and when it is decoded."""
    lengths = COMPRESSION.chunk_lengths(num_frames, most)
    latent_lengths = [COMPRESSION.num_latent_frames(length) for length in lengths]
    found = []
    for run in (
        lambda: NETWORK.encode_frames(torch.rand(1, 3, length, 32, 32) for length in lengths),
        lambda: NETWORK.decode_latents(torch.rand(1, 4, length, 4, 4) for length in latent_lengths),
    ):
        with LargestTensor() as largest:
            for _ in run():
                pass
        found.append(largest.num_bytes)
    return found[0], found[1]


def test_memory_is_that_of_a_chunk():
    assert largest_tensor(29, 8) == largest_tensor(101, 8)
    whole = largest_tensor(101, 104)
    assert all(few < many / 8 for few, many in zip(largest_tensor(101, 8), whole, strict=True))
