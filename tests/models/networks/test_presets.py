"""Presets: the sizes that they stand for, what they cost, and how they are chosen."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.config import ConfigError, dump_config, load_config
from models.networks.config import DiTConfig, read_network_config
from models.networks.counts import ClipSize, TrainingBytes, dit_cost
from models.networks.dit import DiT
from models.networks.presets import PRESETS, PresetName
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from pipeline.run.fingerprints import stored
from testing.paths import ROOT

GUIDE = ROOT / "docs" / "guides" / "networks.md"
SMALL_CLIP, LARGE_CLIP = ClipSize((5, 32, 32), 512), ClipSize((21, 60, 104), 512)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_sizes(name):
    """Nothing of the name is left: a network is the same whether its sizes were given by name or by number."""
    config = DiTConfig(preset=name)
    assert config.preset is None
    sizes = stored(config)
    assert (sizes["width"], sizes["depth"]) == (PRESETS[name].width, PRESETS[name].depth)
    assert read_network_config(sizes) == config
    assert DiTConfig.model_validate({"preset": name, "width": PRESETS[name].width}) == config
    assert DiTConfig(preset=name, text=TextConfig(max_bytes=200)).text.max_bytes == 200
    assert DiTConfig(preset=name, text=TextConfig(max_bytes=200)).text.width == PRESETS[name].text.width


def test_tiny_is_the_default_size():
    assert DiTConfig(preset="tiny") == DiTConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_the_guide_has_the_counted_parameters_and_operations(name):
    """With latents of 16 channels and embeddings of 4096; operations of training, per token."""
    config = DiTConfig(preset=name)
    small, large = (dit_cost(config, 16, clip, 4096) for clip in (SMALL_CLIP, LARGE_CLIP))
    per_token = [
        cost.training_flops / config.num_tokens(clip.latent_grid) / 1e9
        for cost, clip in ((small, SMALL_CLIP), (large, LARGE_CLIP))
    ]
    row = (
        f"| `{name}` | {config.width} | {config.depth} | {config.heads} | {config.text.width} | `{config.modulation}` "
        f"| {small.parameters / 1e6:,.1f} | {small.training_bytes.total / 2**30:,.1f} | {per_token[0]:.2f} "
        f"| {per_token[1]:.2f} |"
    )
    assert row in GUIDE.read_text(encoding="utf-8").splitlines()


def bytes_of(network: torch.nn.Module) -> TrainingBytes:
    """Of the weights, of their gradients and of what AdamW keeps after a step, but for the number of that step."""
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.step()
    states = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    weights = list(network.parameters())
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    assert len(gradients) == len(weights)
    return TrainingBytes(*(sum(x.nbytes for x in each) for each in (weights, gradients, states)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_counted_bytes_are_those_of_the_network_and_its_optimizer(name):
    """Of the preset itself, with tensors that have no values."""
    config = DiTConfig(preset=name)
    with torch.device("meta"):
        network = DiT(config, 16, 4096)
    for parameter in network.parameters():
        parameter.grad = torch.empty_like(parameter)
    cost = dit_cost(config, 16, SMALL_CLIP, 4096)
    assert bytes_of(network) == cost.training_bytes
    assert cost.training_bytes.total == 16 * cost.parameters


def test_a_step_without_values_has_the_counted_bytes_and_operations():
    config, clip = DiTConfig(preset="tiny"), ClipSize((2, 4, 4), 8)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = DiT(config, 16, 4096)
        caption = CaptionEmbeddings(torch.zeros(1, 8, 4096), torch.ones(1, 8, dtype=torch.bool))
        network.flops_probe(torch.empty(1, 16, *clip.latent_grid), torch.zeros(1), caption).backward()
    cost = dit_cost(config, 16, clip, 4096)
    assert counter.get_total_flops() == cost.training_flops
    assert bytes_of(network) == cost.training_bytes


def test_the_names_say_the_parameters():
    billions: dict[PresetName, float] = {"XL": 1.3, "5B": 5, "14B": 14}
    for name, number in billions.items():
        cost = dit_cost(DiTConfig(preset=name), 16, SMALL_CLIP, 4096)
        assert cost.parameters / 1e9 == pytest.approx(number, rel=0.05)


def test_larger_presets_can_be_shared_by_four_workers():
    small = {name for name, preset in PRESETS.items() if preset.heads % 4}
    assert small == {"tiny", "S"}


def test_sizes_beside_a_preset_are_refused_by_name():
    with pytest.raises(ValueError, match=r"depth is 3, but 12 in preset S: leave out depth, or preset"):
        DiTConfig.model_validate({"preset": "S", "depth": 3})
    with pytest.raises(ValueError, match=r"text\.width is 64, but 256 in preset S: leave out text\.width, or preset"):
        DiTConfig.model_validate({"preset": "S", "text": {"width": 64}})
    with pytest.raises(ValueError, match=r"preset\n +Input should be 'tiny', 'S'"):
        DiTConfig.model_validate({"preset": "huge"})


def test_a_resolved_configuration_shows_the_sizes(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: test\ndit: {model: {preset: S, patch_size: 4}}\n")
    config = load_config(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_config(config))
    assert "width: 384" in resolved.read_text()
    assert load_config(resolved) == config
    assert load_config(path, ["dit.model={preset: B}"]).dit.model.width == 768
    with pytest.raises(ConfigError, match=r"dit\.model.*width is 192, but 384 in preset S"):
        load_config(Path("demo"), ["dit.model.preset=S"])
