"""What every network offers to the rest of the program."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.networks.build import build_network
from models.networks.config import DiTConfig, NetworkConfig, UNetConfig, WanConfig
from models.networks.protocol import SequenceParallelPlan, VelocityNetwork
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from testing.half import check_half_weights
from testing.networks import combinations, with_open_gates

SMALL: list[NetworkConfig] = [
    DiTConfig(width=64, depth=2, heads=2, text=TextConfig(width=32, depth=1, heads=2, max_bytes=24)),
    UNetConfig(
        architecture="unet",
        width=16,
        multipliers=(1, 3),
        num_blocks=1,
        heads=2,
        text=TextConfig(width=32, depth=1, heads=2, max_bytes=24),
    ),
    WanConfig(architecture="wan", width=64, depth=2, heads=2, mlp_width=96, time_width=16, text_tokens=12),
]


def small_network(config: NetworkConfig, captions: Sequence[str] = ("a red circle", "")) -> tuple:
    """The network on latents of four channels, and captions, as bytes where it reads bytes."""
    if not config.needs_embeddings:
        return build_network(config, channels=4), CaptionTokens.encode(captions, config.caption_text.max_bytes)
    caption = CaptionEmbeddings(torch.randn(len(captions), 9, 20), torch.ones(len(captions), 9, dtype=torch.bool))
    return build_network(config, channels=4, embedding_width=20), caption


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
@pytest.mark.parametrize("times", [(2,), (2, 1, 3)], ids=["time per clip", "time per frame"])
def test_the_velocity_has_the_shape_of_the_latents(config, times):
    network, caption = small_network(config)
    assert isinstance(network, VelocityNetwork)
    assert network.config == config
    assert network(torch.randn(2, 4, 3, 8, 4), torch.rand(times), caption).shape == (2, 4, 3, 8, 4)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_the_rest_of_what_the_program_uses(config):
    network, _ = small_network(config)
    assert len(network.blocks) > 0
    assert isinstance(network.sequence_plan, SequenceParallelPlan)
    targets = network.lora_targets()
    assert all(isinstance(network.get_submodule(name), torch.nn.Linear) for name in targets)
    assert any(name.startswith("blocks.") for name in targets)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_the_weights_are_all_that_a_network_built_without_values_lacks(config):
    """No buffer and no other tensor that only the constructor fills: weights are read into it one by one."""
    network, caption = small_network(config)
    with torch.device("meta"):
        read, _ = small_network(config)
    assert [name for name, _ in network.named_parameters(remove_duplicate=False)] == list(network.state_dict())
    read.load_state_dict(network.state_dict(), assign=True)
    x, t = torch.randn(2, 4, 3, 8, 4), torch.rand(2)
    assert torch.equal(read(x, t, caption), network(x, t, caption))


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_operations_are_counted_without_values(config):
    def flops(side: int) -> int:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            network, caption = small_network(config, captions=[""])
            network.flops_probe(torch.empty(1, 4, 3, side, side), torch.zeros(1), caption.to("meta")).backward()
        return counter.get_total_flops()

    assert 0 < flops(4) < flops(8)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_a_caption_without_tokens_gives_a_finite_velocity_and_changes_no_other(config):
    """No caption is made without tokens; a mask that says so is not an excuse for NaN."""
    network, caption = small_network(config)
    with_open_gates(network)
    x, t = torch.randn(2, 4, 3, 8, 4), torch.rand(2)
    expected = network(x, t, caption)
    mask = caption.mask.clone()
    mask[1] = False
    out = network(x, t, replace(caption, mask=mask))
    assert torch.equal(out[0], expected[0])
    assert out.isfinite().all()
    out.sum().backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    "config", [*SMALL, *combinations().values()], ids=lambda config: getattr(config, "architecture", "")
)
def test_weights_in_bfloat16_leave_each_layer_its_type(config):
    """What autocast leaves in float32 with float32 weights (residuals, norms, embeddings) stays so."""
    torch.manual_seed(0)
    network, caption = small_network(config, captions=["a dot", ""])
    with_open_gates(network)
    x, t = torch.randn(2, 4, 3, 8, 4), torch.rand(2)
    check_half_weights(network, lambda network: network(x, t, caption))
