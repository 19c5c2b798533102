"""Configurations of networks: what is refused, how many tokens there are, and what records of older versions mean."""

import json

import pytest

from models.networks.config import DEFAULT_NETWORK, DiTConfig, UNetConfig, read_network_config
from pipeline.run.fingerprints import stored


def test_dit_config_names_the_nearest_heads():
    with pytest.raises(ValueError, match=r"heads is 5.*use 4 heads"):
        DiTConfig(width=128, heads=5)


def test_tokens_are_patches_of_each_latent_frame():
    config = DiTConfig(patch_size=2)
    assert config.token_grid((5, 8, 6)) == (5, 4, 3)
    assert config.num_tokens((5, 8, 6)) == 60
    with pytest.raises(ValueError, match=r"a latent of 8 x 5 does not split into patches of 2 x 2"):
        config.num_tokens((5, 8, 5))


def test_a_record_without_an_architecture_is_of_a_dit():
    """Checkpoints of versions that had one network do not name it, and those of this version are stored the same."""
    fields = stored(DiTConfig(depth=3))
    assert "architecture" not in fields
    assert read_network_config(fields) == DiTConfig(depth=3)
    assert read_network_config(DEFAULT_NETWORK.model_dump()) == DEFAULT_NETWORK


def test_an_unknown_architecture_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"'mamba' .*expected tags: 'dit', 'unet', 'wan'"):
        read_network_config({"architecture": "mamba"})


def test_a_unet_halves_height_and_width_at_every_level_but_the_first():
    config = UNetConfig(architecture="unet", width=16, multipliers=(1, 2, 3), heads=2)
    assert config.widths == (16, 32, 48)
    assert config.token_grid((5, 8, 12)) == (5, 2, 3)
    assert config.num_tokens((5, 8, 12)) == 30
    with pytest.raises(
        ValueError, match=r"a latent of 8 x 6 does not split into patches of 4 x 4, as the 3 levels of mul"
    ):
        config.num_tokens((5, 8, 6))


def test_a_stored_unet_reads_back():
    config = UNetConfig(architecture="unet", width=16, multipliers=(1, 2), num_blocks=1, heads=2)
    assert read_network_config(json.loads(json.dumps(stored(config)))) == config


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"heads": 5}, r"heads is 5, but width times the last of multipliers, 192, must split .* use 4 heads"),
        (
            {"width": 9, "multipliers": (1, 1)},
            "width times the last of multipliers is 9, but it must be a multiple of 8",
        ),
        ({"text": {"heads": 3}}, r"text\.heads is 3, but text\.width, 128, must split .* use 2 heads"),
        ({"multipliers": (1,)}, "multipliers"),
        ({"multipliers": (1, 0)}, r"multipliers\.1"),
        (
            {"multipliers": (1, 2000)},
            r"width is 64 and multipliers \[1, 2000\], but a level has at most 65536 channels",
        ),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_unet_that_cannot_be_is_refused_by_field(fields, said):
    with pytest.raises(ValueError, match=said):
        UNetConfig(architecture="unet", **fields)
