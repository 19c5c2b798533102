"""Latents from tokens, by a network that predicts them. Pure functions on tensors."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from models.flow.discrete import Logits, TokenPath, masked_source, sample_tokens, uniform_source
from models.flow.grid import uniform_grid
from models.flow.guidance import batched, guide
from models.flow.spec import FlowSpec, TokenFlowSpec
from models.text.caption import Caption, CaptionReader, joined
from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer
from pipeline.run import randomness
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import OnStep, PromptSeed

TokenPredictor = Callable[[Tensor, Tensor, Caption], Tensor]
"""Maps (x_t, t, caption) to logits of the tokens of the data, such as a `TokenNetwork`."""


def token_path(spec: TokenFlowSpec, tokens: TokenizerConfig) -> TokenPath:
    """The path of tokens."""
    source = masked_source if spec.source == "masked" else uniform_source
    return TokenPath(source(tokens.num_tokens), spec.power)


def guided_logits(
    network: TokenPredictor,
    cond: Caption,
    uncond: Caption,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Logits:
    """Classifier-free guidance of logits: log p = log p_uncond + scale (log p_cond - log p_uncond) up to a constant.

    Args:
        interval: first and last time of it; outside of them the scale is 1.
    """
    branches = batched(network, cond, uncond, joined(cond, uncond))

    def logits(x: Tensor, t: Tensor) -> Tensor:
        is_guided = interval[0] <= float(t[0]) <= interval[1]  # all tokens have one time
        if scale == 1 or not is_guided:
            return branches.cond(x, t)
        return branches.uncond(x, t) if scale == 0 else guide(*branches.together(x, t), scale)

    return logits


def sample_token_latents(
    network: TokenPredictor,
    flow: FlowSpec,
    tokenizer: Tokenizer,
    config: SampleConfig,
    clips: Sequence[PromptSeed],
    *,
    guidance_scale: float,
    grid: tuple[int, int, int],
    read_captions: CaptionReader,
    device: torch.device,
    on_step: OnStep | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Sample tokens, and the normalised latents that they stand for.

    The random numbers of each clip depend on its own seed only.

    Args:
        grid: latent positions (t, h, w).
    """
    assert flow.tokens is not None
    path = token_path(flow.tokens, tokenizer.config)
    shape = (tokenizer.config.codes, *grid)
    negative = flow.null_caption if config.negative_prompt is None else config.negative_prompt
    cond = read_captions([clip.prompt for clip in clips]).to(device)
    uncond = read_captions([negative] * len(clips)).to(device)
    guided = guided_logits(network, cond, uncond, guidance_scale, config.guidance_interval)
    has_mask = len(path.source) > tokenizer.config.num_tokens
    numbers = count(1)

    def logits(x: Tensor, t: Tensor) -> Tensor:
        found = guided(x, t.float())
        if on_step is not None:
            on_step(next(numbers), config.steps)
        return pad(found, (0, 1), value=-torch.inf) if has_mask else found  # no token of the data is a mask

    def uniform(number: int) -> Tensor:
        drawn = [randomness.uniform(clip.seed, "tokens", [number], shape) for clip in clips]
        return torch.cat(drawn).to(device)

    times = uniform_grid(config.steps, config.shift).to(device)
    start = path.start(uniform(-1))
    tokens = sample_tokens(logits, path, start, times, uniform, config.temperature, config.corrector)
    return tokenizer.decode(tokens)
