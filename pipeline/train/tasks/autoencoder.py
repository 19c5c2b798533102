"""Train the autoencoder to reconstruct clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow
from data.stream.loader import Sample, Subset
from data.video.codec import decode_clip
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.protocol import VideoAutoencoder
from pipeline.encode.codec import to_pixels
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.run.fingerprints import stored
from pipeline.train.stream import Weights, training_subsets


@dataclass(frozen=True)
class PixelBatch:
    """Clips in [-1, 1], and the noise that their latents are sampled with."""

    pixels: Float[Tensor, "b 3 t h w"]
    noise: Float[Tensor, "b c s i j"]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(self.pixels.to(device), self.noise.to(device))


class AutoencoderLoss(nn.Module):
    """Squared and absolute error of the reconstruction, plus the weighted KL divergence of the posterior."""

    def __init__(self, network: VideoAutoencoder, kl_weight: float) -> None:
        super().__init__()
        self.network = network
        self.kl_weight = kl_weight

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        """The losses of a batch: encode, sample the posterior, decode, compare with the input."""
        posterior = self.network.encode(batch.pixels)
        reconstruction = self.network.decode(posterior.sample(batch.noise))
        squared = mse_loss(reconstruction, batch.pixels)
        kl = posterior.kl().mean()
        absolute = l1_loss(reconstruction, batch.pixels)
        total = squared + 0.1 * absolute + self.kl_weight * kl
        return {"total": total, "squared_error": squared, "absolute_error": absolute, "kl": kl}


@dataclass(frozen=True)
class AutoencoderTask:
    """Train the autoencoder on a folder of clip shards."""

    model: AutoencoderConfig
    dataset_dir: Path
    seed: int
    weights: Weights = ()
    kind: str = "autoencoder"

    def build(self, placement: Placement = WHOLE) -> nn.Module:  # noqa: ARG002 - all weights are new
        """The autoencoder inside its loss."""
        return AutoencoderLoss(build_autoencoder(self.model), self.model.kl_weight)

    def subsets(self) -> list[Subset]:
        """The training split."""
        return training_subsets(self.dataset_dir, self.weights)

    def collate(self, samples: list[Sample]) -> PixelBatch:
        """A batch of clips of one shape; the posterior's noise is a function of each sample's position."""
        pixels = torch.stack([to_pixels(decode_clip(sample.payload)) for sample in samples])
        t, h, w = pixels.shape[2:]
        shape = self.model.latent_shape(t, h, w)
        return PixelBatch(
            pixels, randomness.normal(self.seed, "posterior", (sample.position for sample in samples), shape)
        )

    def pack(self, batches: list[PixelBatch]) -> PixelBatch:
        """Not of this network, whose settings refuse `mixed_buckets`."""
        raise NotImplementedError(f"an autoencoder takes {len(batches)} shapes one at a time")

    def validation_batch(self, row: IndexRow, payload: bytes) -> PixelBatch:
        """One clip; its noise is a function of its key."""
        pixels = to_pixels(decode_clip(payload))[None]
        shape = self.model.latent_shape(*pixels.shape[2:])
        return PixelBatch(pixels, randomness.normal(self.seed, "validation-posterior", [row.key], shape))

    def previewer(self, device: torch.device) -> None:
        """None: an autoencoder generates no clips."""

    def num_tokens(self, bucket: Bucket) -> int:
        """Number of latent positions of one clip."""
        return bucket.num_latent_positions

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """The loss of one clip of the bucket."""
        size = (bucket.num_frames, bucket.height, bucket.width)
        batch = PixelBatch(torch.empty(1, 3, *size), torch.empty(1, *self.model.latent_shape(*size)))
        return AutoencoderLoss(build_autoencoder(self.model), self.model.kl_weight)(batch)["total"]

    def metadata(self) -> dict[str, Any]:
        """The architecture and the seed."""
        return {"model": stored(self.model), "seed": self.seed}

    def attachments(self) -> list[Path]:
        """None: a checkpoint of the autoencoder needs no other files."""
        return []
