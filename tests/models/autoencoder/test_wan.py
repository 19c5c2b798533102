"""Wan's autoencoders equal those of diffusers in latents, pixels and gradients, whole and in chunks."""

import pytest
import torch

from models.autoencoder.causal import CausalCache
from models.autoencoder.wan import ChannelRMSNorm, WanAutoencoder
from models.autoencoder.wan_published import published_names
from testing.tensors import LargestTensor
from testing.wan import SMALL_SETTINGS, make_pair

CHUNKS = [[1, 4, 4, 4, 4], [5, 12], [9, 4, 4], [1, 16], [13, 4]]  # frames; 17 in all


@pytest.fixture(scope="module", params=SMALL_SETTINGS)
def pair(request):
    return make_pair(SMALL_SETTINGS[request.param])


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 1e-5) -> None:
    """The largest difference is at most `relative` times the largest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


def clip_for(network: WanAutoencoder, num_frames: int, batch: int = 2) -> torch.Tensor:
    """A clip whose latents are of 2 x 3 positions."""
    side = network.config.compression.spatial_factor
    return torch.rand(batch, 3, num_frames, 2 * side, 3 * side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17])
def test_latents_and_pixels_equal_diffusers(pair, num_frames):
    theirs, ours = pair
    pixels = clip_for(ours, num_frames)
    with torch.no_grad():
        expected, found = theirs.encode(pixels).latent_dist, ours.encode(pixels)
        assert_near(found.mean, expected.mean)
        assert_near(found.log_variance, expected.logvar)
        assert found.mean.shape[1:] == ours.config.latent_shape(*pixels.shape[2:])
        decoded = ours.decode(expected.mean)
    assert decoded.shape == pixels.shape
    assert_near(decoded.clamp(-1, 1), theirs.decode(expected.mean).sample)


@pytest.mark.parametrize("lengths", CHUNKS, ids=str)
def test_chunks_equal_diffusers(pair, lengths):
    theirs, ours = pair
    pixels = clip_for(ours, sum(lengths), batch=1)
    with torch.no_grad():
        latents = theirs.encode(pixels).latent_dist.mean
        expected = theirs.decode(latents).sample
    assert_near(torch.cat(list(ours.encode_frames(pixels.split(lengths, dim=2))), dim=2), latents)
    latent_lengths = [ours.config.compression.num_latent_frames(length) for length in lengths]
    decoded = list(ours.decode_latents(latents.split(latent_lengths, dim=2)))
    assert [chunk.shape[2] for chunk in decoded] == lengths
    assert_near(torch.cat(decoded, dim=2).clamp(-1, 1), expected)


def loss_of(pixels: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor, decode) -> torch.Tensor:
    """Absolute error of the reconstruction of a sample, and a term of the latents."""
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    decoded = decode(mean + torch.exp(0.5 * log_variance) * noise).clamp(-1, 1)
    return (decoded - pixels).abs().mean() + 0.1 * (mean.square() + log_variance.exp() - log_variance).mean()


def test_gradients_equal_diffusers(pair):
    theirs, ours = pair
    pixels = clip_for(ours, 9)
    found = ours.encode(pixels)
    loss_of(pixels, found.mean, found.log_variance, ours.decode).backward()
    expected = theirs.encode(pixels).latent_dist
    loss_of(pixels, expected.mean, expected.logvar, lambda latents: theirs.decode(latents).sample).backward()
    published, names = dict(theirs.named_parameters()), published_names(ours.config)
    for name, parameter in ours.named_parameters():
        expected_gradient = published[names[name]].grad
        assert expected_gradient.abs().max() > 0, name
        assert_near(parameter.grad, expected_gradient, 1e-4)


def test_bfloat16_is_as_exact_as_that_of_diffusers(pair):
    """Both round differently; the deviation of ours from fp32 is less than twice theirs."""
    theirs, ours = pair
    pixels = clip_for(ours, 5)
    with torch.no_grad():
        exact = ours.encode(pixels).mean
        exact_pixels = ours.decode(exact).clamp(-1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = ours.encode(pixels).mean, theirs.encode(pixels).latent_dist.mean
            found_pixels, expected_pixels = ours.decode(exact).clamp(-1, 1), theirs.decode(exact).sample
    assert found.dtype == found_pixels.dtype == torch.float32
    assert (found - exact).std() < 2 * (expected - exact).std()
    assert (found_pixels - exact_pixels).std() < 2 * (expected_pixels - exact_pixels).std()


def test_no_output_depends_on_a_later_frame(pair):
    _, network = pair
    one = clip_for(network, 13)
    other = torch.cat([one[:, :, :5], torch.rand_like(one[:, :, 5:])], dim=2)
    with torch.no_grad():
        z_one, z_other = network.encode(one).mean, network.encode(other).mean
        torch.testing.assert_close(z_one[:, :, :2], z_other[:, :, :2])
        assert not torch.allclose(z_one[:, :, 2], z_other[:, :, 2])
        mixed = torch.cat([z_one[:, :, :2], z_other[:, :, 2:]], dim=2)
        x_one, x_mixed = network.decode(z_one), network.decode(mixed)
    torch.testing.assert_close(x_one[:, :, :5], x_mixed[:, :, :5])
    assert not torch.allclose(x_one[:, :, 5], x_mixed[:, :, 5])


def test_the_cache_does_not_grow(pair):
    _, network = pair
    cache, kept = CausalCache(), []
    with torch.no_grad():
        for length in (1, 4, 8, 4):
            network.encode(clip_for(network, length), cache)
            kept.append({layer: frames.untyped_storage().nbytes() for layer, frames in cache.frames.items()})
    assert kept[1] == kept[2] == kept[3]
    assert kept[0].keys() == kept[1].keys()
    assert max(frames.shape[2] for frames in cache.frames.values()) == 2


def test_memory_is_that_of_a_chunk(pair):
    _, network = pair

    def largest(num_chunks: int) -> tuple[int, int]:
        found = []
        first, other = clip_for(network, 1), clip_for(network, 4)
        z_first = torch.zeros(2, *network.config.latent_shape(1, *first.shape[3:]))
        for steps in (
            network.encode_frames([first, *[other] * num_chunks]),
            network.decode_latents([z_first] * (1 + num_chunks)),
        ):
            with LargestTensor() as largest:
                for _ in steps:
                    pass
            found.append(largest.num_bytes)
        return found[0], found[1]

    assert largest(2) == largest(5)


@pytest.mark.parametrize(("num_frames", "side", "told"), [(4, 2, r"4k \+ 1"), (5, 2.5, "multiples of")])
def test_clips_that_do_not_fit_are_refused(pair, num_frames, side, told):
    _, network = pair
    pixels = torch.zeros(1, 3, num_frames, *[int(side * network.config.compression.spatial_factor)] * 2)
    with pytest.raises(ValueError, match=told):
        network.encode(pixels)


def test_the_norm_is_exact_for_tiny_values_and_keeps_zeros():
    norm = ChannelRMSNorm(8, num_axes=1)
    x = torch.randn(2, 8, 3)
    torch.testing.assert_close(norm(x * 1e-9), norm(x))
    torch.testing.assert_close(norm(x).square().mean(1), torch.ones(2, 3))
    zeros = torch.zeros(1, 8, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(zeros).sum(), zeros)
    assert torch.isfinite(gradient).all()
    assert not norm(zeros).any()
    assert norm(x.bfloat16()).dtype == torch.bfloat16
