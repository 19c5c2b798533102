"""Names of weights and `config.json` as diffusers publishes Wan's autoencoders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.autoencoder.config import WanAutoencoderConfig
from models.autoencoder.wan import WanAutoencoder
from models.autoencoder.wan_published import published_config, published_names, read_published_config
from testing.wan import SMALL_SETTINGS, make_pair, make_published

WAN_2_1 = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}  # diffusers' defaults are its sizes
WAN_2_2 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
SMALL_2_1, SMALL_2_2 = SMALL_SETTINGS.values()
VARIANTS = {
    "2.1": WAN_2_1,
    "2.2": WAN_2_2,
    "three blocks": SMALL_2_1 | {"num_res_blocks": 3},
    "one level in time": SMALL_2_2 | {"temperal_downsample": [True, False, False], "scale_factor_temporal": 2},
    "three levels": SMALL_2_1 | {"dim_mult": [2, 2, 4], "temperal_downsample": [True, True], "scale_factor_spatial": 4},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_names_are_a_bijection_of_weights_of_the_same_shapes(settings):
    with torch.device("meta"):
        theirs = make_published(settings)
        config = read_published_config(dict(theirs.config))
        ours = WanAutoencoder(config)
    names, weights = published_names(config), theirs.state_dict()
    assert names.keys() == ours.state_dict().keys()
    assert sorted(names.values()) == sorted(weights)
    assert {name: weights[names[name]].shape for name in names} == {
        name: weight.shape for name, weight in ours.state_dict().items()
    }


@pytest.mark.parametrize(
    ("settings", "channels", "factors", "num_millions"), [(WAN_2_1, 16, (4, 8), 127), (WAN_2_2, 48, (4, 16), 705)]
)
def test_the_published_sizes(settings, channels, factors, num_millions):
    config = read_published_config(settings)
    assert config.latent_channels == channels
    assert (config.compression.temporal_factor, config.compression.spatial_factor) == factors
    with torch.device("meta"):
        num_weights = sum(weight.numel() for weight in WanAutoencoder(config).parameters())
    assert round(num_weights / 1e6) == num_millions


@pytest.mark.parametrize("settings", SMALL_SETTINGS.values(), ids=SMALL_SETTINGS.keys())
def test_folders_of_diffusers_are_read_and_written(settings, tmp_path):
    theirs, ours = make_pair(settings)
    theirs.save_pretrained(tmp_path / "theirs")
    fields = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config = read_published_config(fields)
    assert config == ours.config
    assert config.latent_mean == tuple(settings["latents_mean"])
    weights = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(weights[theirs_], ours.state_dict()[name]) for name, theirs_ in published_names(config).items()
    )

    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(config)))
    named = {published: ours.state_dict()[name] for name, published in published_names(config).items()}
    save_file(named, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    again = type(theirs).from_pretrained(folder)
    assert {key: value for key, value in again.config.items() if not key.startswith("_")} == {
        key: config.width if key == "decoder_base_dim" and value is None else value
        for key, value in theirs.config.items()
        if not key.startswith("_")
    }
    assert all(torch.equal(weight, theirs.state_dict()[name]) for name, weight in again.state_dict().items())


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_configurations_are_read_back(settings):
    config = read_published_config(settings)
    assert read_published_config(published_config(config)) == config
    assert read_published_config(json.loads(json.dumps(published_config(config)))) == config


def test_missing_keys_have_the_defaults_of_diffusers():
    with torch.device("meta"):
        theirs = make_published({})
    config = read_published_config(dict(theirs.config))
    assert config == read_published_config({key: theirs.config[key] for key in ("latents_mean", "latents_std")})
    assert config == WanAutoencoderConfig(latent_mean=config.latent_mean, latent_std=config.latent_std)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'"),
        ({"attn_scales": [0.5]}, r"attn_scales is \[0.5\], but only \[\] is supported"),
        ({"dropout": 0.1}, "dropout is 0.1"),
        ({"clip_output": True}, "clip_output is True"),
        ({"sample_rate": 3}, "sample_rate is no key"),
        ({"in_channels": 4}, "in_channels is 4, but the other keys imply 3"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial is 16, but the other keys imply 8"),
        ({"scale_factor_temporal": 8}, "scale_factor_temporal is 8, but the other keys imply 4"),
        ({"base_dim": "wide"}, "base_dim: Input should be a valid integer"),
        ({"dim_mult": [1, 0, 4, 4]}, "dim_mult.1: Input should be greater than or equal to 1"),
        ({"latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std.2: Input should be greater than 0"),
        ({"latents_mean": [0.0]}, "latents_mean has 1 values, but z_dim is 4"),
        ({"temperal_downsample": [True]}, "temperal_downsample has 1 values, but the 4 levels of dim_mult take 3"),
        ({"base_dim": 7, "dim_mult": [1, 2, 1, 4]}, "level 1 has 7 channels.*an even decoder_base_dim"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, told):
    with pytest.raises(ValueError, match=told):
        read_published_config(SMALL_2_1 | change)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="latents_std: Field required"):
        read_published_config({"z_dim": 4, "latents_mean": [0.0] * 4})
