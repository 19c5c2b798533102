"""Configurations of networks: what is refused, how many tokens there are, and what records of older versions mean."""

import json

import pytest

from models.networks.config import DEFAULT_NETWORK, DiTConfig, UNetConfig, read_network_config
from models.networks.dit_options import RopeConfig
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


def test_a_pattern_of_attention_repeats_to_the_last_block():
    assert DiTConfig(depth=3).block_spans == ("full", "full", "full")
    assert DiTConfig(depth=3, attention_pattern=("space", "time")).block_spans == ("space", "time", "space")
    with pytest.raises(ValueError, match=r"attention_pattern has 3 entries, but depth is 2"):
        DiTConfig(depth=2, attention_pattern=("space", "time", "full"))
    with pytest.raises(ValueError, match=r"attention_pattern\n.*at least 1 item"):
        DiTConfig(attention_pattern=())


def test_positions_that_do_not_fit_the_heads_or_each_other_are_refused():
    fitting = DiTConfig(width=64, heads=2, rope=RopeConfig(axes=(8, 12, 12)))
    assert read_network_config(stored(fitting)) == fitting
    with pytest.raises(
        ValueError, match=r"rope\.axes is \[8, 12, 8\], which adds up to 28, but a head has 32 channels"
    ):
        DiTConfig(width=64, heads=2, rope=RopeConfig(axes=(8, 12, 8)))
    with pytest.raises(ValueError, match=r"axes is \[9, 11, 12\], but channels turn in pairs: use even numbers"):
        RopeConfig(axes=(9, 11, 12))
    with pytest.raises(ValueError, match=r"extrapolation is 'ntk', but trained_grid is None: give both or neither"):
        RopeConfig(extrapolation="ntk")
    with pytest.raises(ValueError, match=r"extrapolation is 'none', but trained_grid is \[5, 8, 8\]"):
        RopeConfig(trained_grid=(5, 8, 8))
    with pytest.raises(ValueError, match=r"trained_grid is \[0, 8, 8\]"):
        RopeConfig(trained_grid=(0, 8, 8), extrapolation="ntk")


def test_a_rank_is_given_with_low_rank_modulation_and_only_with_it():
    with pytest.raises(
        ValueError, match=r"modulation is 'low_rank', but modulation_rank is None: give a rank, such as 24"
    ):
        DiTConfig(modulation="low_rank")
    with pytest.raises(ValueError, match=r"modulation is 'shared', but modulation_rank is 8"):
        DiTConfig(modulation="shared", modulation_rank=8)
    with pytest.raises(ValueError, match=r"modulation_rank is 192, but a rank below width 192 is meant: use 24"):
        DiTConfig(modulation="low_rank", modulation_rank=192)


def test_joint_blocks_are_some_of_the_blocks():
    assert DiTConfig(depth=4, joint_blocks=1, attention_pattern=("space", "time")).block_spans == (
        "space",
        "time",
        "space",
    )
    assert DiTConfig(depth=4, joint_blocks=4).block_spans == ()
    with pytest.raises(ValueError, match=r"joint_blocks is 5, but depth is 4: use at most 4"):
        DiTConfig(depth=4, joint_blocks=5)
    with pytest.raises(
        ValueError, match=r"attention_pattern has 2 entries, but depth is 4, of which 3 are joint_blocks"
    ):
        DiTConfig(depth=4, joint_blocks=3, attention_pattern=("space", "time"))


def test_a_condition_is_named_once():
    with pytest.raises(ValueError, match=r"clip_conditions is \['fps', 'fps'\]: name each once"):
        DiTConfig(clip_conditions=("fps", "fps"))
