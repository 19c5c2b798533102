"""Sizes of autoencoders that fit together."""

import pytest
from pydantic import ValidationError

from data.dataset.compression import Compression
from models.autoencoder.config import AutoencoderConfig, WanAutoencoderConfig, WanLevel, read_autoencoder_config
from pipeline.run.fingerprints import stored

WAN = {"latent_channels": 2, "latent_mean": [0.0, 0.5], "latent_std": [1.0, 2.0], "width": 8, "decoder_width": 8}
RESIDUAL = WAN | {"residual": True}


def test_levels():
    """In Wan 2.1 an upsampling halves the channels, in Wan 2.2 it keeps them; the decoder resamples in reverse."""
    config = WanAutoencoderConfig.model_validate(WAN | {"decoder_width": 4})
    assert config.encoder_levels == [
        WanLevel(8, 8, 8, space=2, time=1),
        WanLevel(8, 16, 16, space=2, time=2),
        WanLevel(16, 32, 32, space=2, time=2),
        WanLevel(32, 32, 32, space=1, time=1),
    ]
    assert config.decoder_levels == [
        WanLevel(16, 16, 8, space=2, time=2),
        WanLevel(8, 16, 8, space=2, time=2),
        WanLevel(8, 8, 4, space=2, time=1),
        WanLevel(4, 4, 4, space=1, time=1),
    ]
    residual = config.model_copy(update={"residual": True})
    assert residual.encoder_levels == config.encoder_levels
    assert [level.channels_out for level in residual.decoder_levels] == [16, 16, 8, 4]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (WAN | {"latent_channels": 3}, "latent_mean has 2 values, but latent_channels is 3"),
        (WAN | {"latent_std": [1.0]}, "latent_std has 1 values"),
        (WAN | {"temporal_downsampling": [True]}, "has 1 values, but the 4 levels of multipliers take 3"),
        (WAN | {"decoder_width": 5, "multipliers": [1, 1, 4, 4]}, "level 2 has 5 channels.*an even decoder_width"),
        (RESIDUAL | {"multipliers": [1, 3, 3, 3]}, "shortcut of level 1 averages 64 channels to 24"),
        (RESIDUAL | {"multipliers": [1, 1, 8, 8]}, "shortcut of the decoder's level 2 repeats 64 channels to 32"),
        (RESIDUAL | {"multipliers": [2, 2, 1, 3]}, "shortcut of level 3 averages 8 channels to 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, told):
    with pytest.raises(ValidationError, match=told):
        WanAutoencoderConfig.model_validate(settings)


def test_the_strides_follow_from_the_configuration():
    assert AutoencoderConfig().compression == Compression(4, 8)
    coarse = AutoencoderConfig(spatial_factor=16)
    assert coarse.compression == Compression(4, 16)
    assert coarse.latent_shape(17, 64, 96) == (16, 5, 4, 6)


def test_a_configuration_of_before_is_read_as_it_was():
    """It names its channels, has one stride, and the weight of a term of the loss."""
    before = {"latent_channels": 8, "width": 48, "deep_width": 96, "num_blocks": 1}
    config = read_autoencoder_config(before | {"kl_weight": 0.001})
    assert config == AutoencoderConfig(latent_channels=8)
    assert stored(config) == before
