"""Sampling clips during training, with a network that is wrapped by the training engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from data.records import Frames
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.spec import FlowSpec
from models.networks.protocol import JumpEnd
from models.text.caption import Caption, CaptionReader
from pipeline.encode.chunks import decode_clips
from pipeline.encode.statistics import denormalize
from pipeline.run.precision import autocast
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.train.tasks.flow_batch import FlowQuery


@dataclass(frozen=True)
class FlowPreviewer:
    """Samples one clip at a time, so that a clip depends neither on the batch size nor on the rank."""

    config: SampleConfig
    flow: FlowSpec
    stats: LatentStats
    bucket: Bucket
    read_captions: CaptionReader
    autoencoder: VideoAutoencoder
    device: torch.device

    @torch.no_grad()
    def clip(self, evaluate: Callable[[Any], dict[str, Tensor]], prompt: str, seed: int) -> Frames:
        """The clip of a prompt and a seed, uint8 (t h w 3); `evaluate` answers a `FlowQuery`."""
        fps = torch.tensor([self.bucket.fps], dtype=torch.float32)

        def network(x_t: Tensor, t: Tensor, caption: Caption, jump: JumpEnd | None = None) -> Tensor:
            return evaluate(FlowQuery(x_t, t, caption, fps, jump))["predicted"]

        size = (self.bucket.num_frames, self.bucket.height, self.bucket.width)
        with autocast(self.config.precision, self.device):
            latents = sample_latents(
                network,
                self.flow,
                self.config,
                [PromptSeed(prompt, seed)],
                guidance_scale=self.config.guidance_scale,
                shape=self.autoencoder.config.latent_shape(*size),
                read_captions=self.read_captions,
                device=self.device,
            )
            (frames,) = decode_clips(self.autoencoder, denormalize(latents, self.stats), tile=self.config.tile)
        return frames
