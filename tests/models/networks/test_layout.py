"""Clips of several shapes packed into one sequence: equal to each clip alone, and without operations on padding."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.networks.build import build_network
from models.networks.config import DiTConfig, NetworkConfig, UNetConfig
from models.networks.dit import DiT
from models.networks.dit_options import RopeConfig
from models.networks.layout import PackedLayout, PackedPart
from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from models.text.packing import CaptionPacking
from testing.networks import combinations, small_dit, with_open_gates

SHAPES = ((2, 4, 3, 4, 4), (1, 4, 1, 8, 4), (1, 4, 3, 4, 4), (2, 4, 2, 4, 6))  # two parts of one shape, apart
TIMES = ((2, 1, 3), (1,), (1, 1, 3), (2,))  # per frame, and per clip
CAPTIONS = ["a dot", "", "two dots", "a", "a square", "no"]
OPTIONS: dict[str, DiTConfig] = {
    **combinations(),
    "clip conditions": small_dit(clip_conditions=("fps", "size")),
    "only the size": small_dit(clip_conditions=("size",)),
    "stretched positions": small_dit(rope=RopeConfig(trained_grid=(2, 2, 2), extrapolation="ntk")),
    "coarse patches": small_dit(patch_size=1, attention_pattern=("time", "space", "full")),
}


def clips() -> tuple[list[Tensor], list[Tensor], CaptionTokens, Tensor]:
    """Noisy latents by shape, times, captions and frame rates."""
    torch.manual_seed(1)
    x, t = [torch.randn(shape) for shape in SHAPES], [torch.rand(shape) for shape in TIMES]
    return x, t, CaptionTokens.encode(CAPTIONS, 8), torch.tensor([8.0, 8, 16, 24, 8, 12])


def alone(network: DiT, x: list[Tensor], t: list[Tensor], caption: CaptionTokens, fps: Tensor) -> list[Tensor]:
    """The velocities, each clip in a batch of its own."""
    number, result = 0, []
    for clips_of, times_of in zip(x, t, strict=True):
        velocities = []
        for clip, time in zip(clips_of, times_of, strict=True):
            one = slice(number, number + 1)
            words = CaptionTokens(caption.ids[one], caption.mask[one])
            velocities.append(network.at_fps(fps[one])(clip[None], time[None], words))
            number += 1
        result.append(torch.cat(velocities))
    return result


def packed(network: DiT, x: list[Tensor], t: list[Tensor], caption: CaptionTokens, fps: Tensor) -> list[Tensor]:
    return network.packed(x, t, caption, CaptionPacking.of(caption.mask), fps)


def gradients(network: DiT, velocities: list[Tensor]) -> dict[str, Tensor]:
    """Of a weighted sum of squares, so that every clip has a gradient of its own."""
    network.zero_grad()
    torch.stack([number * velocity.square().sum() for number, velocity in enumerate(velocities, 1)]).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_is_each_clip_alone(name):
    """Velocities, and the gradient of every weight."""
    torch.manual_seed(0)
    network = DiT(OPTIONS[name], 4)
    with_open_gates(network)
    expected, velocities = alone(network, *clips()), packed(network, *clips())
    torch.testing.assert_close(velocities, expected, rtol=1e-5, atol=1e-5)
    wanted = gradients(network, expected)
    found = gradients(network, velocities)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            found[key], gradient, rtol=1e-5, atol=1e-5 * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_clips_of_one_shape_packed_are_the_padded_batch():
    torch.manual_seed(0)
    network = DiT(small_dit(joint_blocks=1, attention_pattern=("space", "time")), 4)
    with_open_gates(network)
    x, t, caption = torch.randn(6, 4, 3, 4, 4), torch.rand(6), CaptionTokens.encode(CAPTIONS, 8)
    (velocity,) = packed(network, [x], [t], caption, torch.ones(6))
    batch = network(x, t, caption)
    torch.testing.assert_close(velocity, batch, rtol=1e-5, atol=1e-5)
    wanted, found = gradients(network, [batch]), gradients(network, [velocity])
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


def test_the_order_of_the_clips_in_a_pack_does_not_matter():
    torch.manual_seed(0)
    network = DiT(small_dit(attention_pattern=("space", "time"), joint_blocks=1), 4)
    with_open_gates(network)
    x, t, caption, fps = clips()
    velocities = packed(network, x, t, caption, fps)
    order, rows = [2, 0, 3, 1], [3, 0, 1, 4, 5, 2]  # of the parts, and of the clips in them
    words = CaptionTokens(caption.ids[rows], caption.mask[rows])
    permuted = packed(network, [x[i] for i in order], [t[i] for i in order], words, fps[rows])
    torch.testing.assert_close(permuted, [velocities[i] for i in order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["full, cross, per block", "factorised, joint, then cross, shared"])
def test_a_pack_takes_the_operations_of_its_clips_and_none_for_padding(name):
    """By torch's counter; the caption of a clip alone is read without its padding."""
    network = DiT(OPTIONS[name], 4)
    x, t, caption, fps = clips()
    with FlopCounterMode(display=False) as together:
        torch.cat([velocity.flatten() for velocity in packed(network, x, t, caption, fps)]).sum().backward()
    total, number = 0, 0
    for clips_of, times_of in zip(x, t, strict=True):
        for clip, time in zip(clips_of, times_of, strict=True):
            words = CaptionTokens.encode([CAPTIONS[number]], 8)
            one = [clip[None]], [time[None]], words, fps[number : number + 1]
            with FlopCounterMode(display=False) as counter:
                packed(network, *one)[0].sum().backward()
            total, number = total + counter.get_total_flops(), number + 1
    assert together.get_total_flops() == total
    with FlopCounterMode(display=False) as padded:
        for clips_of, times_of in zip(x, t, strict=True):
            batch = CaptionTokens.encode(["a"] * len(clips_of), 8)
            network(clips_of, times_of, batch).sum().backward()
    assert total < padded.get_total_flops()  # which reads each caption at its padded length


def test_captions_as_embeddings_are_packed():
    torch.manual_seed(0)
    network = DiT(small_dit(), 4, embedding_width=12)
    with_open_gates(network)
    x, t, _, fps = clips()
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 1])[:, None]
    caption = CaptionEmbeddings(torch.randn(6, 5, 12) * mask[..., None], mask)
    velocities = network.packed(x, t, caption, CaptionPacking.of(mask), fps)
    for velocity, (clips_of, times_of, start) in zip(velocities, zip(x, t, (0, 2, 3, 4), strict=True), strict=True):
        rows = slice(start, start + len(clips_of))
        expected = network(clips_of, times_of, CaptionEmbeddings(caption.values[rows], mask[rows]))
        torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [True, "selective"])
def test_recomputed_activations_change_nothing(recompute):
    torch.manual_seed(0)
    network = DiT(small_dit(joint_blocks=1), 4)
    with_open_gates(network)
    plain = gradients(network, packed(network, *clips()))
    network.blocks.recompute = network.joint.recompute = recompute
    again = gradients(network, packed(network, *clips()))
    assert all(torch.equal(again[key], gradient) for key, gradient in plain.items())


def test_a_pack_needs_a_caption_for_each_clip():
    x, t, caption, fps = clips()
    packing = CaptionPacking.of(caption.mask[:-1])
    with pytest.raises(ValueError, match="6 clips are packed, but there are 5 captions"):
        DiT(small_dit(), 4).packed(x, t, CaptionTokens(caption.ids[:-1], caption.mask[:-1]), packing, fps)


def test_networks_that_do_not_pack_say_so():
    small: NetworkConfig = UNetConfig(architecture="unet", width=8, multipliers=(1, 2), heads=1)
    assert not small.packs_clips
    x, t, caption, fps = clips()
    with pytest.raises(NotImplementedError, match="unet does not pack clips"):
        build_network(small, 4).packed(x, t, caption, CaptionPacking.of(caption.mask), fps)


def test_groups_are_the_conditions_and_tokens_of_each_part():
    part = PackedPart(num_clips=2, grid=(3, 2, 1), num_times=3)
    captions = CaptionPacking.of(torch.ones(3, 4, dtype=torch.bool))
    layout = PackedLayout.of((part, replace(part, num_clips=1, num_times=1)), captions)
    assert layout.groups == ((6, 12), (1, 6))
    assert layout.clips.lengths == (6, 6, 6)
    assert layout.frames.lengths == (2,) * 9
    assert layout.places.lengths == (3,) * 6
    assert layout.joint.lengths == (10, 10, 10)
