"""Factorised attention is full attention under a mask, and blocks that use it are equivariant to what it cannot see."""

import pytest
import torch
from einops import rearrange, repeat
from torch.nn.functional import scaled_dot_product_attention

from models.networks.config import DiTConfig
from models.networks.dit import DiT, DiTBlock
from models.networks.dit_options import AttentionSpan
from models.networks.protocol import SingleProcess
from models.networks.token_attention import token_attention
from models.networks.token_layout import BatchLayout
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig

FRAMES, PLACES = 3, 4
SPANS: tuple[AttentionSpan, ...] = ("full", "space", "time")


def allowed(span: str) -> torch.Tensor:
    """Which tokens (n m) may see each other, by frame and place."""
    frame = repeat(torch.arange(FRAMES), "t -> (t s)", s=PLACES)
    place = repeat(torch.arange(PLACES), "s -> (t s)", t=FRAMES)
    same_frame, same_place = frame[:, None] == frame[None], place[:, None] == place[None]
    return {"full": same_frame | ~same_frame, "space": same_frame, "time": same_place}[span]


@pytest.mark.parametrize("span", SPANS)
def test_it_is_full_attention_under_a_mask_forward_and_backward(span):
    torch.manual_seed(0)
    inputs = [torch.randn(2, FRAMES * PLACES, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query, key, value = inputs
    out = token_attention(query, key, value, span, FRAMES, SingleProcess())
    q, k, v = (rearrange(x, "b n h d -> b h n d") for x in inputs)
    expected = rearrange(scaled_dot_product_attention(q, k, v, attn_mask=allowed(span)), "b h n d -> b n h d")
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    for ours, reference in zip(
        torch.autograd.grad(out, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("span", SPANS)
def test_a_block_commutes_with_permutations_of_tokens_that_its_span_allows(span):
    """A block gets positions by rotation only: without, any order of places is as good, and of frames.

    Full attention commutes with any permutation of tokens, the factorised ones with those of whole frames and places.
    """
    torch.manual_seed(1)
    config = DiTConfig(width=32, depth=1, heads=2, text=TextConfig(width=16, depth=0, heads=2, max_bytes=8))
    block = DiTBlock(config, span)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    n = FRAMES * PLACES
    x, text = torch.randn(2, n, 32), torch.randn(2, 5, 16)
    condition, angles = torch.randn(2, 1, 32), torch.zeros(n, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)

    def run(tokens: torch.Tensor) -> torch.Tensor:
        return block(tokens, condition, None, text, angles, BatchLayout(FRAMES, mask, None, SingleProcess()))

    numbers = rearrange(torch.arange(n), "(t s) -> t s", t=FRAMES)
    order = numbers[torch.randperm(FRAMES)][:, torch.randperm(PLACES)].flatten()
    torch.testing.assert_close(run(x[:, order]), run(x)[:, order], rtol=1e-4, atol=1e-4)
    anyhow = torch.randperm(n)
    is_equal = torch.allclose(run(x[:, anyhow]), run(x)[:, anyhow], rtol=1e-4, atol=1e-4)
    assert is_equal == (span == "full")


def test_what_a_block_does_not_see_does_not_change_its_output():
    """A change of one frame reaches no other frame through space attention, and every frame along time."""
    torch.manual_seed(2)
    text = TextConfig(width=16, depth=1, heads=2, max_bytes=8)
    x, t, caption = torch.randn(1, 4, 3, 4, 4), torch.tensor([0.5]), CaptionTokens.encode(["a dot"], 8)
    changed = x.clone()
    changed[:, :, 1] += 1
    patterns: dict[tuple[AttentionSpan, ...], bool] = {
        ("space",): False,
        ("space", "time"): True,
        ("time",): True,
        ("full",): True,
    }
    for pattern, sees in patterns.items():
        network = DiT(DiTConfig(width=32, depth=2, heads=2, text=text, attention_pattern=pattern), 4)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        difference = (network(changed, t, caption) - network(x, t, caption)).abs().amax((0, 1, 3, 4))
        assert difference[1] > 0
        assert bool((difference[[0, 2]] > 0).all()) == sees


def test_an_image_has_one_frame_for_every_span():
    """With one frame, space attention is full attention, and attention along time copies the value."""
    q, k, v = torch.randn(3, 2, PLACES, 2, 8).unbind(0)
    plan = SingleProcess()
    assert torch.equal(token_attention(q, k, v, "space", 1, plan), token_attention(q, k, v, "full", 1, plan))
    torch.testing.assert_close(token_attention(q, k, v, "time", 1, plan), v)
