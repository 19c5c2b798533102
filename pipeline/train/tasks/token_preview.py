"""Sampling clips during training, with a network of tokens that is wrapped by the training engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from data.records import Frames
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.spec import FlowSpec
from models.text.caption import Caption, CaptionReader
from models.tokens.tokenizer import Tokenizer
from pipeline.encode.chunks import decode_clips
from pipeline.encode.statistics import denormalize
from pipeline.run.precision import autocast
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed
from pipeline.sample.tokens import sample_token_latents


@dataclass(frozen=True)
class TokenQuery:
    """The inputs of a network, passed to the engine like a batch, because ZeRO-3 gathers parameters in its forward."""

    x_t: Int[Tensor, "b g t h w"]
    t: Float[Tensor, " b"]
    caption: Caption
    fps: Float[Tensor, " 1"]

    def to(self, device: torch.device) -> Self:
        """The same query on another device."""
        return type(self)(self.x_t.to(device), self.t.to(device), self.caption.to(device), self.fps.to(device))


@dataclass(frozen=True)
class TokenPreviewer:
    """Samples one clip at a time, so that a clip depends neither on the batch size nor on the rank."""

    config: SampleConfig
    flow: FlowSpec
    stats: LatentStats
    bucket: Bucket
    read_captions: CaptionReader
    tokenizer: Tokenizer
    autoencoder: VideoAutoencoder
    device: torch.device

    @torch.no_grad()
    def clip(self, evaluate: Callable[[Any], dict[str, Tensor]], prompt: str, seed: int) -> Frames:
        """The clip of a prompt and a seed, uint8 (t h w 3); `evaluate` answers a `TokenQuery`."""
        fps = torch.tensor([self.bucket.fps], dtype=torch.float32)

        def network(x_t: Tensor, t: Tensor, caption: Caption) -> Tensor:
            return evaluate(TokenQuery(x_t, t, caption, fps))["logits"]

        with autocast(self.config.precision, self.device):
            latents = sample_token_latents(
                network,
                self.flow,
                self.tokenizer,
                self.config,
                [PromptSeed(prompt, seed)],
                guidance_scale=self.config.guidance_scale,
                grid=self.bucket.latent_grid(self.autoencoder.config.compression),
                read_captions=self.read_captions,
                device=self.device,
            )
            (frames,) = decode_clips(self.autoencoder, denormalize(latents, self.stats), tile=self.config.tile)
        return frames
