"""Sampling tokens: with a tabulated network exactly its distribution, guidance, and clips of a trained network."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.flow.spec import FlowSpec
from models.text.bytes import CaptionTokens
from models.text.caption import Caption
from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer
from pipeline.sample.checks import contradiction_in
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed
from pipeline.sample.tokens import guided_logits, sample_token_latents

LEVELS, PROBABILITIES = (2, 2), torch.tensor([0.1, 0.2, 0.3, 0.4])
DEVICE = torch.device("cpu")


def read(captions):
    return CaptionTokens.encode(captions, 8)


def tokens_drawn(network, steps: int, scale: float = 1.0, source: str = "masked", **settings) -> Tensor:
    """The tokens of 40 clips, read from the latents that a tokeniser whose layers are the identity gives."""
    tokenizer = Tokenizer(TokenizerConfig(levels=LEVELS, codes=1, depth=0), 2)
    with torch.no_grad():
        for layer in (tokenizer.before[0], tokenizer.after[0]):
            layer.get_parameter("weight").copy_(torch.eye(2).reshape(2, 2, 1, 1, 1))
            layer.get_parameter("bias").zero_()
    flow = FlowSpec.model_validate({"tokens": {"source": source}})
    config = SampleConfig(solver="jumps", steps=steps, **settings)
    clips = [PromptSeed("a dot", seed) for seed in range(40)]
    latents = sample_token_latents(
        network,
        flow,
        tokenizer,
        config,
        clips,
        guidance_scale=scale,
        grid=(2, 8, 8),
        read_captions=read,
        device=DEVICE,
    )
    return (latents.round() + 1).long().select(1, 0) + 2 * (latents.round() + 1).long().select(1, 1)


def tabulated(x: Tensor, _t: Tensor, caption: Caption) -> Tensor:
    """The distribution of one token, and with the empty caption the uniform one."""
    has_text = (caption.mask.sum(1) > 1).float()
    return has_text[:, None, None, None, None, None] * PROBABILITIES.log().expand(*x.shape, 4)


@pytest.mark.parametrize("source", ["masked", "uniform"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_tokens_have_the_distribution_that_the_network_tells(source, steps):
    """At any number of steps, because the jump probability is exact."""
    share = tokens_drawn(tabulated, steps, source=source).flatten().bincount(minlength=4) / (40 * 128)
    assert (share - PROBABILITIES).abs().max() < 4 * (0.25 / (40 * 128)) ** 0.5


def test_guidance_and_temperature_sharpen_in_closed_form():
    """log p_uncond is constant here: scale 2 squares the probabilities, as temperature 1/2 does."""
    squared = PROBABILITIES.square() / PROBABILITIES.square().sum()
    sharp: list[dict[str, Any]] = [{"scale": 2.0}, {"temperature": 0.5}, {"scale": 2.0, "corrector": 0.5}]
    for settings in sharp:
        share = tokens_drawn(tabulated, 4, **settings).flatten().bincount(minlength=4) / (40 * 128)
        assert (share - squared).abs().max() < 4 * (0.25 / (40 * 128)) ** 0.5
    flat = tokens_drawn(tabulated, 4, scale=2.0, guidance_interval=(2 / 3, 1.0)).flatten().bincount(minlength=4)
    partly = 0.75 * PROBABILITIES + 0.25 * squared  # three of four steps are before it
    assert (flat / (40 * 128) - partly).abs().max() < 4 * (0.25 / (40 * 128)) ** 0.5


def test_scale_1_is_the_conditional_network_in_one_call():
    torch.manual_seed(0)
    table = torch.randn(2, 4)
    seen = []

    def network(x: Tensor, _t: Tensor, caption: Caption) -> Tensor:
        seen.append(len(x))
        return table[(caption.mask.sum(1) > 1).long()][:, None]

    cond, uncond, x, t = read(["a dot"] * 3), read([""] * 3), torch.zeros(3, 1, dtype=torch.long), torch.zeros(3)
    for scale in (0.0, 1.0, 3.0):
        expected = table[0] + scale * (table[1] - table[0])
        torch.testing.assert_close(guided_logits(network, cond, uncond, scale)(x, t), expected.expand(3, 1, 4))
    assert seen == [3, 3, 6]


def test_a_clip_depends_on_its_own_seed_alone():
    one, two = tokens_drawn(tabulated, 3), tokens_drawn(tabulated, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"solver": "jumps", "guidance": "apg"}, "guidance"),
        ({"solver": "jumps", "ddim_eta": 0.5}, "ddim_eta"),
        ({"solver": "jumps", "grid": "karras"}, "grid"),
        ({"solver": "jumps", "schedule": "pyramid"}, "schedule"),
        ({"temperature": 0.9}, "temperature"),
        ({"solver": "euler", "corrector": 0.1}, "corrector"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, field):
    found = contradiction_in(SampleConfig(**settings))
    assert found is not None
    assert found.field == field
    assert (
        contradiction_in(SampleConfig(solver="jumps", temperature=0.9, corrector=0.3, guidance_interval=(0, 0.5)))
        is None
    )
