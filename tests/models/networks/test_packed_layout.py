"""Clips of several shapes packed into one sequence: equal to each clip alone, and without operations on padding."""

import copy
from dataclasses import replace

import einops
import jaxtyping
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from models.networks.build import build_network
from models.networks.config import DiTConfig, NetworkConfig, UNetConfig
from models.networks.dit import DiT
from models.networks.dit_options import RopeConfig
from models.networks.packed_layout import PackedLayout, PackedPart
from models.networks.protocol import Conditions, NoisyClips
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
    "given frames as channels": small_dit(known_frames="channels"),
    "only the size": small_dit(clip_conditions=("size",)),
    "stretched positions": small_dit(rope=RopeConfig(trained_grid=(2, 2, 2), extrapolation="ntk")),
    "coarse patches": small_dit(patch_size=1, attention_pattern=("time", "space", "full")),
}


def clips() -> tuple[list[NoisyClips], CaptionTokens]:
    """Noisy latents by shape, with the first frame of some given, and their captions."""
    torch.manual_seed(1)
    batches = []
    for shape, times in zip(SHAPES, TIMES, strict=True):
        known = torch.zeros(shape[0], 1, shape[2], dtype=torch.bool)
        known[0, 0, 0] = True
        conditions = Conditions(8.0 * torch.arange(1, shape[0] + 1), known)
        batches.append(NoisyClips(torch.randn(shape), torch.rand(times), conditions))
    return batches, CaptionTokens.encode(CAPTIONS, 8)


def each_alone(batches: list[NoisyClips]) -> list[NoisyClips]:
    """Every clip as a batch of its own."""
    alone = []
    for clips in batches:
        assert clips.conditions.known is not None
        for one in (slice(n, n + 1) for n in range(len(clips.x))):
            conditions = Conditions(clips.conditions.fps[one], clips.conditions.known[one])
            alone.append(NoisyClips(clips.x[one], clips.t[one], conditions))
    return alone


def alone(network: DiT, batches: list[NoisyClips], caption: CaptionTokens) -> list[Tensor]:
    """The velocities, each clip in a batch of its own."""
    velocities = []
    for number, clip in enumerate(each_alone(batches)):
        one = slice(number, number + 1)
        words = CaptionTokens(caption.ids[one], caption.mask[one])
        velocities.append(network.given(clip.conditions)(clip.x, clip.t, words))
    parts = iter(velocities)
    return [torch.cat([next(parts) for _ in clips.x]) for clips in batches]


def packed(network: DiT, batches: list[NoisyClips], caption: CaptionTokens) -> list[Tensor]:
    return network.packed(batches, caption, CaptionPacking.of(caption.mask))


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
    (velocity,) = packed(network, [NoisyClips(x, t, Conditions(torch.ones(6)))], caption)
    batch = network(x, t, caption)
    torch.testing.assert_close(velocity, batch, rtol=1e-5, atol=1e-5)
    wanted, found = gradients(network, [batch]), gradients(network, [velocity])
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


def test_the_order_of_the_clips_in_a_pack_does_not_matter():
    torch.manual_seed(0)
    network = DiT(small_dit(attention_pattern=("space", "time"), joint_blocks=1), 4)
    with_open_gates(network)
    batches, caption = clips()
    velocities = packed(network, batches, caption)
    order, rows = [2, 0, 3, 1], [3, 0, 1, 4, 5, 2]  # of the batches, and of their clips
    words = CaptionTokens(caption.ids[rows], caption.mask[rows])
    permuted = packed(network, [batches[i] for i in order], words)
    torch.testing.assert_close(permuted, [velocities[i] for i in order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["full, cross, per block", "factorised, joint, then cross, shared"])
def test_a_pack_takes_the_operations_of_its_clips_and_none_for_padding(name):
    """By torch's counter; the caption of a clip alone is read without its padding."""
    network = DiT(OPTIONS[name], 4)
    batches, caption = clips()

    def flops(some: list[NoisyClips], words: CaptionTokens) -> int:
        with FlopCounterMode(display=False) as counter:
            torch.cat([velocity.flatten() for velocity in packed(network, some, words)]).sum().backward()
        return counter.get_total_flops()

    together = flops(batches, caption)
    one_by_one = zip(each_alone(batches), CAPTIONS, strict=True)
    assert together == sum(flops([clip], CaptionTokens.encode([words], 8)) for clip, words in one_by_one)
    with FlopCounterMode(display=False) as padded:
        for each in batches:
            network(each.x, each.t, CaptionTokens.encode(["a"] * len(each.x), 8)).sum().backward()
    assert together < padded.get_total_flops()  # which reads each caption at its padded length


def test_in_half_precision_a_pack_differs_by_rounding_alone():
    torch.manual_seed(0)
    network = DiT(small_dit(joint_blocks=1, attention_pattern=("space", "time"), clip_conditions=("size",)), 4)
    with_open_gates(network)
    with torch.autocast("cpu", torch.bfloat16):
        velocities = packed(network, *clips())
        expected = alone(network, *clips())
    exact = alone(network, *clips())
    for velocity, one, reference in zip(velocities, expected, exact, strict=True):
        rounding = (one.float() - reference).abs().max().item()
        assert (velocity.float() - reference).abs().max() < 2 * rounding


def test_captions_as_embeddings_are_packed():
    torch.manual_seed(0)
    network = DiT(small_dit(), 4, embedding_width=12)
    with_open_gates(network)
    batches, _ = clips()
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 1])[:, None]
    caption = CaptionEmbeddings(torch.randn(6, 5, 12) * mask[..., None], mask)
    velocities, start = network.packed(batches, caption, CaptionPacking.of(mask)), 0
    for velocity, each in zip(velocities, batches, strict=True):
        rows = slice(start, start + len(each.x))
        expected = network(each.x, each.t, CaptionEmbeddings(caption.values[rows], mask[rows]))
        torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)
        start = rows.stop


@pytest.mark.parametrize("joint_blocks", [0, 3])
def test_a_caption_without_tokens_gives_a_finite_velocity(joint_blocks):
    network = DiT(small_dit(joint_blocks=joint_blocks), 4, embedding_width=12)
    with_open_gates(network)
    batches, _ = clips()
    mask = torch.arange(5) < torch.tensor([5, 0, 3, 0, 4, 1])[:, None]
    caption = CaptionEmbeddings(torch.randn(6, 5, 12) * mask[..., None], mask)
    velocities = network.packed(batches, caption, CaptionPacking.of(mask))
    assert all(velocity.isfinite().all() for velocity in velocities)
    assert all(gradient.isfinite().all() for gradient in gradients(network, velocities).values())


@pytest.mark.parametrize("recompute", [True, "selective"])
def test_recomputed_activations_change_nothing(recompute):
    torch.manual_seed(0)
    network = DiT(small_dit(joint_blocks=1), 4)
    with_open_gates(network)
    plain = gradients(network, packed(network, *clips()))
    network.blocks.recompute = network.joint.recompute = recompute
    again = gradients(network, packed(network, *clips()))
    assert all(torch.equal(again[key], gradient) for key, gradient in plain.items())


@pytest.mark.slow
def test_compiled_blocks_are_not_compiled_anew_for_every_pack(monkeypatch):
    """Other numbers of clips and lengths of captions: after a few packs, the compiled code takes any."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    torch.compiler.reset()
    torch.compiler.allow_in_graph(einops.rearrange)  # its parsing of patterns takes seconds to trace
    torch.manual_seed(0)
    network = DiT(small_dit(depth=1), 4)
    with_open_gates(network)
    counter, counts = CompileCounter(), []
    plain = copy.deepcopy(network)
    for block in network.blocks:
        block.compile(backend=counter)
    for numbers in ((2, 3), (3, 2), (4, 5), (6, 4), (5, 7), (3, 6)):
        batches = [
            NoisyClips(torch.randn(number, 4, *grid), torch.rand(number), Conditions(torch.ones(number)))
            for number, grid in zip(numbers, ((3, 4, 4), (1, 4, 6)), strict=True)
        ]
        caption = CaptionTokens.encode(["a" * (1 + number % 3) for number in range(sum(numbers))], 8)
        torch.testing.assert_close(packed(network, batches, caption), packed(plain, batches, caption))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[-3]
    assert counts[-1] <= 3 * counts[0]


def test_a_pack_needs_a_caption_for_each_clip():
    batches, _ = clips()
    caption = CaptionTokens.encode(CAPTIONS[1:], 8)
    with pytest.raises(ValueError, match="6 clips are packed, but there are 5 captions"):
        packed(DiT(small_dit(), 4), batches, caption)


def test_networks_that_do_not_pack_say_so():
    small: NetworkConfig = UNetConfig(architecture="unet", width=8, multipliers=(1, 2), heads=1)
    assert not small.packs_clips
    batches, caption = clips()
    with pytest.raises(NotImplementedError, match="unet does not pack clips"):
        build_network(small, 4).packed(batches, caption, CaptionPacking.of(caption.mask))


def test_groups_are_the_conditions_and_tokens_of_each_part():
    part = PackedPart(num_clips=2, grid=(3, 2, 1), num_times=3)
    captions = CaptionPacking.of(torch.ones(3, 4, dtype=torch.bool))
    layout = PackedLayout.of((part, replace(part, num_clips=1, num_times=1)), captions)
    assert layout.groups == ((6, 12), (1, 6))
    assert layout.clips.lengths == (6, 6, 6)
    assert layout.frames.lengths == (2,) * 9
    assert layout.places.lengths == (3,) * 6
    assert layout.joint.lengths == (10, 10, 10)
