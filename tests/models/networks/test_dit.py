"""The DiT: its defaults bit for bit, zero velocity at first, what it reads, and the shapes that it takes."""

import einops
import jaxtyping
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from models.networks.config import DiTConfig
from models.networks.dit import DiT, patchify, unpatchify
from models.networks.dit_options import RopeConfig
from models.networks.rope import rope_angles
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig
from pipeline.run.fingerprints import output_json, stored
from testing.networks import combinations, noisy_batch, with_open_gates
from testing.plain_dit import PlainDiT

SMALL_DIT = DiTConfig(width=64, depth=2, heads=2, text=TextConfig(width=32, depth=1, heads=2, max_bytes=24))


def test_patchify_and_unpatchify_are_inverse():
    x = torch.randn(2, 3, 4, 6, 8)
    tokens = patchify(x, 2)
    assert tokens.shape == (2, 4 * 3 * 4, 3 * 4)
    assert torch.equal(unpatchify(tokens, 2, (4, 3, 4)), x)


def test_dit_starts_at_zero_velocity_and_every_parameter_learns():
    """adaLN-zero: the output is 0, so the first loss is E|v|^2; after two steps every parameter has a gradient."""
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    x, t = torch.randn(2, 4, 3, 8, 8), torch.tensor([0.2, 0.8])
    caption = CaptionTokens.encode(["a red circle", ""], 24)
    assert torch.equal(network(x, t, caption), torch.zeros_like(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (network(x, t, caption) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_dit_reads_its_caption_and_time():
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 4, 3, 8, 8)

    def out(text, t):
        return network(x, torch.tensor([t]), CaptionTokens.encode([text], 24))

    assert not torch.allclose(out("a red circle", 0.5), out("a blue circle", 0.5))
    assert not torch.allclose(out("a red circle", 0.5), out("a red circle", 0.6))


def test_dit_takes_latents_of_any_shape():
    """One network for every bucket: in a larger frame the tokens of a corner keep their places."""
    torch.manual_seed(0)
    network, caption = DiT(SMALL_DIT, 4), CaptionTokens.encode(["a red circle"], 24)
    with torch.inference_mode():
        for shape in ((1, 4, 3, 8, 8), (1, 4, 1, 4, 12), (1, 4, 5, 16, 8)):
            assert network(torch.randn(shape), torch.tensor([0.5]), caption).shape == shape
    x = torch.randn(1, 4, 1, 4, 12)
    network(x, torch.tensor([0.5]), caption).sum().backward()  # what inference has kept serves training
    with pytest.raises(ValueError, match="a latent of 7 x 8 does not split into patches of 2 x 2"):
        network(torch.randn(1, 4, 3, 7, 8), torch.tensor([0.5]), caption)
    large, small = rope_angles((2, 3, 4), 32).reshape(2, 3, 4, -1), rope_angles((1, 2, 2), 32).reshape(1, 2, 2, -1)
    assert torch.equal(large[:1, :2, :2], small)


def test_dit_takes_a_time_per_frame():
    """One time said once or said for every frame is the same; a frame's own time changes what it predicts."""
    torch.manual_seed(0)
    network = DiT(SMALL_DIT, 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, caption = torch.randn(2, 4, 3, 8, 8), CaptionTokens.encode(["a red circle", ""], 24)
    together, per_frame = torch.tensor([0.2, 0.8]), torch.tensor([[[0.2, 0.2, 0.2]], [[0.8, 0.8, 0.8]]])
    torch.testing.assert_close(network(x, per_frame, caption), network(x, together, caption))
    later = per_frame.clone()
    later[0, 0, 2] = 0.9
    changed = (network(x, later, caption) - network(x, per_frame, caption)).abs().amax((1, 3, 4))
    assert changed[1].max() == 0
    assert changed[0, 2] > changed[0, :2].max() > 0  # the other frames see it through attention


def test_the_stored_record_has_no_new_key():
    sizes = {"width": 64, "depth": 2, "heads": 2, "mlp_ratio": 4, "patch_size": 2}
    text = {"width": 32, "depth": 1, "heads": 2, "max_bytes": 24, "ngram_buckets": 2048}
    assert stored(SMALL_DIT) == sizes | {"text": text}
    assert output_json(SMALL_DIT).startswith('{"width":64,"depth":2,"heads":2,"mlp_ratio":4,"patch_size":2,"text":{')


@pytest.mark.parametrize("times", [(2,), (2, 1, 3)], ids=["time per clip", "time per frame"])
def test_initial_weights_outputs_and_gradients_are_bit_for_bit_those_of_the_plain_network(times):
    torch.manual_seed(5)
    network = DiT(SMALL_DIT, 4)
    torch.manual_seed(5)
    plain = PlainDiT(SMALL_DIT, 4)
    weights = plain.state_dict()
    assert list(network.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    network.load_state_dict(plain.state_dict())
    x, t, caption = torch.randn(2, 4, 3, 8, 4), torch.rand(times), CaptionTokens.encode(["a red circle", ""], 24)
    outputs = [each(x, t, caption) for each in (network, plain)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().mean().backward()
    for (name, ours), (_, expected) in zip(network.named_parameters(), plain.named_parameters(), strict=True):
        assert ours.grad is not None
        assert expected.grad is not None
        assert torch.equal(ours.grad, expected.grad), name


def test_every_part_of_rope_changes_what_the_network_computes():
    torch.manual_seed(0)
    weights = DiT(SMALL_DIT, 4)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, caption = torch.randn(1, 4, 3, 8, 8), torch.tensor([0.5]), CaptionTokens.encode(["a red circle"], 24)
    outputs = []
    for rope in (
        RopeConfig(),
        RopeConfig(theta=1000),
        RopeConfig(axes=(16, 8, 8)),
        RopeConfig(trained_grid=(2, 2, 2), extrapolation="interpolate"),
        RopeConfig(trained_grid=(2, 2, 2), extrapolation="ntk"),
    ):
        network = DiT(SMALL_DIT.model_copy(update={"rope": rope}), 4)
        network.load_state_dict(weights.state_dict())  # positions have no weights
        outputs.append(network(x, t, caption))
    for number, output in enumerate(outputs):
        assert all(not torch.allclose(output, other) for other in outputs[:number])


COMBINATIONS = combinations()


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_starts_at_zero_and_every_parameter_learns(name):
    torch.manual_seed(0)
    config = COMBINATIONS[name]
    network = DiT(config, 4)
    x, t, caption = noisy_batch(config)
    assert torch.equal(network(x, t, caption), torch.zeros_like(x))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(6):
        optimizer.zero_grad()
        (network(x, t, caption) - x).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_takes_times_per_frame_and_reads_nothing_of_other_clips(name):
    """One time said for every frame is that time said once; clips of a batch are computed apart."""
    torch.manual_seed(0)
    config = COMBINATIONS[name]
    network = DiT(config, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(config)
    together = torch.tensor([0.2, 0.8])
    per_frame = together[:, None, None].expand(2, 1, 3)
    torch.testing.assert_close(network(x, per_frame, caption), network(x, together, caption))
    first = CaptionTokens(caption.ids[:1], caption.mask[:1])
    torch.testing.assert_close(network(x[:1], t[:1], first), network(x, t, caption)[:1])
    assert not torch.allclose(network(x, t, caption), network(x, per_frame, caption))
    other = CaptionTokens.encode(["a box", ""], config.text.max_bytes)
    changed = (network(x, t, other) - network(x, t, caption)).abs().amax((1, 2, 3, 4))
    assert changed[0] > 0
    assert changed[1] == 0


EVERY_OPTION = ["full, cross, per block", "full, joint, shared", "factorised, joint, then cross, low rank"]


@pytest.mark.parametrize("name", EVERY_OPTION)
def test_blocks_compile_without_a_break_once_for_each_kind(name, monkeypatch):
    """fullgraph=True makes a break an error. Blocks of equal code share what was compiled."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the checks of shapes cannot be traced
    torch.compiler.reset()
    torch.compiler.allow_in_graph(einops.rearrange)  # its parsing of patterns takes seconds to trace
    torch.manual_seed(0)
    config = COMBINATIONS[name]
    network = DiT(config, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(config)
    expected = network(x, t, caption)
    counter = CompileCounter()
    for block in (*network.joint, *network.blocks):
        block.compile(fullgraph=True, backend=counter)
    torch.testing.assert_close(network(x, t, caption), expected)
    num_joint_kinds = min(2, config.joint_blocks)  # the last one differs
    assert counter.frame_count == num_joint_kinds + len(set(config.block_spans))
