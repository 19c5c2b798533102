"""What every autoencoder offers to the rest of the program."""

import pytest
import torch
from pydantic import ValidationError

from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import (
    AutoencoderConfig,
    VideoAutoencoderConfig,
    WanAutoencoderConfig,
    read_autoencoder_config,
)
from models.autoencoder.protocol import VideoAutoencoder
from pipeline.run.fingerprints import stored
from testing.half import check_half_weights

WAN = WanAutoencoderConfig(
    latent_channels=4, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4, width=4, decoder_width=4, num_blocks=1
)
SMALL: dict[str, VideoAutoencoderConfig] = {
    "causal": AutoencoderConfig(latent_channels=4, width=8, deep_width=16),
    "wan": WAN,
    "wan, residual": WAN.model_copy(update={"residual": True, "patch_size": 2}),
}


@pytest.fixture(params=SMALL)
def network(request):
    torch.manual_seed(0)
    return build_autoencoder(SMALL[request.param])


def test_shapes_are_those_of_the_configuration(network):
    assert isinstance(network, VideoAutoencoder)
    pixels = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    posterior = network.encode(pixels)
    assert posterior.mean.shape == posterior.log_variance.shape == (2, *network.config.latent_shape(9, 32, 48))
    assert network.decode(posterior.mean).shape == pixels.shape


def test_chunks_give_what_the_whole_gives(network):
    pixels = torch.rand(1, 3, 13, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = network.encode(pixels).mean
        decoded = network.decode(latents)
    chunks = torch.cat(list(network.encode_frames(pixels.split([5, 8], dim=2))), dim=2)
    torch.testing.assert_close(chunks, latents, rtol=1e-5, atol=1e-5)
    chunks = torch.cat(list(network.decode_latents(latents.split([1, 3], dim=2))), dim=2)
    torch.testing.assert_close(chunks, decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "told"), [([8], r"takes 4k \+ 1"), ([5, 3], "a chunk of 3 frames"), ([5, 4, 5], "a chunk of 5 frames")]
)
def test_lengths_that_do_not_fit_are_refused(network, lengths, told):
    with pytest.raises(ValueError, match=told):
        list(network.encode_frames(torch.zeros(1, 3, length, 32, 32) for length in lengths))


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())
def test_a_stored_configuration_is_read_back(config):
    assert read_autoencoder_config(stored(config)) == config
    assert ("architecture" in stored(config)) == (config.architecture != "causal")  # older files do not have it


def test_an_unknown_architecture_is_refused_by_name():
    with pytest.raises(ValidationError, match=r"'unet'.* 'causal', 'wan'"):
        read_autoencoder_config({"architecture": "unet"})


def test_weights_in_bfloat16_leave_each_layer_its_type(network):
    pixels = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    check_half_weights(network, lambda network: network.decode(network.encode(pixels).mean).float())
