"""The U-Net: what must hold of it exactly."""

import einops
import jaxtyping
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from models.attention import backends
from models.layers import BlockStack
from models.networks.build import build_network
from models.networks.config import DiTConfig, NetworkConfig, UNetConfig
from models.networks.unet import UNet
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings

TEXT = TextConfig(width=32, depth=1, heads=2, max_bytes=24)
SMALL = UNetConfig(architecture="unet", width=16, multipliers=(1, 1, 2), num_blocks=2, heads=2, text=TEXT)
CAPTION = CaptionTokens.encode(["a red circle", ""], 24)


def small_unet(*, randomized: bool = True) -> UNet:
    """On latents of four channels; with random weights, so that the output depends on all of them."""
    torch.manual_seed(0)
    network = UNet(SMALL, 4)
    if randomized:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_unet_starts_at_zero_velocity_and_every_parameter_learns():
    """adaLN-zero: the output is 0, so the first loss is E|v|^2; after two steps every parameter has a gradient."""
    network = small_unet(randomized=False)
    x, t = torch.randn(2, 4, 3, 8, 8), torch.tensor([0.2, 0.8])
    assert torch.equal(network(x, t, CAPTION), torch.zeros_like(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, t, CAPTION) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (4, 1, 4, 12), (4, 5, 16, 8)], ids=str)
def test_unet_takes_latents_of_any_shape(shape):
    network, caption = small_unet(), CaptionTokens.encode(["a red circle"], 24)
    with torch.inference_mode():
        assert network(torch.randn(1, *shape), torch.tensor([0.5]), caption).shape == (1, *shape)
    x = torch.randn(1, *shape)
    network(x, torch.tensor([0.5]), caption).sum().backward()  # what inference has kept serves training


def test_a_latent_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="a latent of 6 x 8 does not split into patches of 4 x 4, as the 3 levels"):
        small_unet()(torch.randn(2, 4, 3, 6, 8), torch.rand(2), CAPTION)


def test_unet_reads_its_caption_and_time():
    network, x = small_unet(), torch.randn(1, 4, 3, 8, 8)

    def out(text, t):
        return network(x, torch.tensor([t]), CaptionTokens.encode([text], 24))

    assert not torch.allclose(out("a red circle", 0.5), out("a blue circle", 0.5))
    assert not torch.allclose(out("a red circle", 0.5), out("a red circle", 0.6))


def test_padding_of_a_caption_has_no_influence():
    torch.manual_seed(0)
    network = UNet(SMALL, 4, embedding_width=20)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(1, 4, 3, 8, 8), torch.tensor([0.5])
    values, mask = torch.randn(1, 5, 20), torch.ones(1, 5, dtype=torch.bool)
    plain = network(x, t, CaptionEmbeddings(values, mask))
    padded = torch.cat([values, torch.randn(1, 4, 20)], dim=1), torch.cat([mask, ~mask[:, :4]], dim=1)
    torch.testing.assert_close(network(x, t, CaptionEmbeddings(*padded)), plain)


def test_unet_takes_a_time_per_frame():
    """One time said once or said for every frame is the same; a frame's own time changes what it predicts."""
    network, x = small_unet(), torch.randn(2, 4, 3, 8, 8)
    together, per_frame = torch.tensor([0.2, 0.8]), torch.tensor([[[0.2, 0.2, 0.2]], [[0.8, 0.8, 0.8]]])
    torch.testing.assert_close(network(x, per_frame, CAPTION), network(x, together, CAPTION))
    later = per_frame.clone()
    later[0, 0, 2] = 0.9
    changed = (network(x, later, CAPTION) - network(x, per_frame, CAPTION)).abs().amax((1, 3, 4))
    assert changed[1].max() == 0
    assert changed[0, 2] > changed[0, :2].max() > 0  # the other frames see it


def reach(network: UNet, x: torch.Tensor, place: tuple[int, int, int]) -> torch.Tensor:
    """What the velocity at one (t, h, w) depends on: True at each position of the latent with a gradient."""
    x = x.clone().requires_grad_()
    velocity = network(x, torch.tensor([0.5]), CaptionTokens.encode(["a"], 24))
    (gradient,) = torch.autograd.grad(velocity[0, :, *place].sum(), x)
    return gradient.abs().amax((0, 1)) > 0


def without_attention(network: UNet) -> UNet:
    for name, parameter in network.named_parameters():
        if name.startswith("blocks.") and name.endswith((".out.weight", "cross_out.weight")):
            torch.nn.init.zeros_(parameter)
    return network


def test_every_position_sees_every_other_by_attention_and_its_neighbours_in_time_by_convolution():
    x = torch.randn(1, 4, 1, 4, 64)
    assert bool(reach(small_unet(), x, (0, 2, 0)).all())
    seen = reach(without_attention(small_unet()), x, (0, 2, 0))[0, 2]
    assert bool(seen[:8].all())
    assert not bool(seen[-8:].any())

    x = torch.randn(1, 4, 33, 4, 4)
    seen = reach(without_attention(small_unet()), x, (16, 2, 2)).flatten(1).any(1)
    num_over_time = 2 * 5  # two blocks on each of three levels: down, deepest, up; each looks one frame to each side
    assert seen.nonzero().flatten().tolist() == list(range(16 - num_over_time, 16 + num_over_time + 1))


def test_away_from_borders_what_moves_in_the_latent_moves_in_the_velocity():
    """Without attention, a shift by the patch size in space is a shift of the output, and by any frame in time."""
    network, p = without_attention(small_unet()), SMALL.patch_size
    t, caption = torch.tensor([0.5]), CaptionTokens.encode(["a"], 24)
    content = torch.randn(1, 4, 2, 4, 4)

    def velocity(frame: int, row: int, column: int) -> torch.Tensor:
        x = torch.zeros(1, 4, 25, 4, 88)
        x[:, :, frame : frame + 2, row : row + 4, column : column + 4] = content
        with torch.no_grad():
            return network(x, t, caption)

    still, moved, later = velocity(11, 0, 40), velocity(11, 0, 40 + p), velocity(12, 0, 40)
    torch.testing.assert_close(moved[..., 12, :, 40 : 48 + p], still[..., 12, :, 40 - p : 48])
    torch.testing.assert_close(later[..., 13, :, 40:48], still[..., 12, :, 40:48])
    assert not torch.allclose(moved[..., 12, :, 40:48], still[..., 12, :, 40:48], atol=1e-3)


def test_recomputed_blocks_change_no_bit_and_keep_less(monkeypatch):
    monkeypatch.setattr(backends, "_products_by_onednn", lambda: False)  # fused attention, which is kept
    network, x, t = small_unet(), torch.randn(2, 4, 3, 8, 8), torch.rand(2, 1, 3)
    stacks = [part for part in network.modules() if isinstance(part, BlockStack)]
    blocks = [block for stack in stacks for block in stack]
    assert len(stacks) == 5
    assert len(blocks) == 5 * SMALL.num_blocks
    results, kept = [], []
    operations = []
    for recompute in (False, True, "selective"):
        for stack in stacks:
            stack.recompute = recompute
        network.zero_grad()
        sizes = []
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(lambda s, n=sizes: n.append(s.numel()) or s, lambda s: s):
                out = network(x, t, CAPTION)
            out.square().mean().backward()
        results.append([out, *(parameter.grad for parameter in network.parameters())])
        kept.append(sum(sizes))
        operations.append(counter.get_total_flops())
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))
    assert kept[1] < 0.7 * kept[0]
    assert operations[1] > 1.2 * operations[0]
    assert operations[2] == operations[0]  # selective: no convolution or matrix product is repeated


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_gradients_in_bfloat16_are_those_in_float32(frames):
    """Two frames are what torch's Conv3d gets wrong on a CPU."""
    network, x, t = small_unet(), torch.randn(2, 4, frames, 8, 8), torch.rand(2)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = network(x, t, CAPTION)
        (out.float() - x).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.03 * exact.norm()


def test_blocks_compile_without_a_break_once_a_level(monkeypatch):
    """fullgraph=True makes a break an error. What is compiled for a block serves its level, on the ways down and up."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    torch.compiler.reset()
    torch.compiler.allow_in_graph(einops.rearrange)  # its parsing of patterns takes seconds to trace
    torch.manual_seed(0)
    network = UNet(SMALL.model_copy(update={"multipliers": (1, 2, 3)}), 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 4, 3, 8, 8), torch.rand(2, 1, 3)
    expected = network(x, t, CAPTION)
    counter = CompileCounter()
    for stack in (part for part in network.modules() if isinstance(part, BlockStack)):
        for block in stack:
            block.compile(fullgraph=True, backend=counter)
    torch.testing.assert_close(network(x, t, CAPTION), expected)
    assert counter.frame_count == 3


def cost(config: NetworkConfig) -> tuple[int, float]:
    """Millions of operations of a training step on one of the demo's latents, and millions of parameters."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(config, channels=8)
        caption = CaptionTokens.encode([""], config.caption_text.max_bytes).to("meta")
        network.flops_probe(torch.empty(1, 8, 5, 8, 8), torch.zeros(1), caption).backward()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return round(counter.get_total_flops() / 1e6), round(parameters / 1e6, 1)


def test_the_default_costs_what_the_demos_dit_costs():
    text = TextConfig(width=128, depth=1, heads=2, max_bytes=47)
    assert cost(DiTConfig(width=192, depth=4, heads=3, text=text)) == (1213, 4.1)
    assert cost(UNetConfig(architecture="unet", text=text)) == (1232, 3.2)
