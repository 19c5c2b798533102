"""What the training loop needs to know of the autoencoder."""

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
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.autoencoder.shapes import latent_shape
from pipeline.encode.codec import to_pixels
from pipeline.run import randomness
from pipeline.train.stream import Weights, training_subsets


@dataclass(frozen=True)
class PixelBatch:
    """Clips and the noise their latents are sampled with."""

    pixels: Float[Tensor, "b 3 t h w"]
    noise: Float[Tensor, "b c s i j"]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(self.pixels.to(device), self.noise.to(device))


class AutoencoderLoss(nn.Module):
    """Squared and absolute error of the reconstruction, plus the price of the latent's information."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        """Encode, sample, decode, compare."""
        posterior = self.network.encode(batch.pixels)
        reconstruction = self.network.decode(posterior.sample(batch.noise))
        squared = mse_loss(reconstruction, batch.pixels)
        kl = posterior.kl().mean()
        absolute = l1_loss(reconstruction, batch.pixels)
        total = squared + 0.1 * absolute + self.network.config.kl_weight * kl
        return {"total": total, "squared_error": squared, "absolute_error": absolute, "kl": kl}


@dataclass(frozen=True)
class AutoencoderTask:
    """Train the autoencoder on a folder of clip shards."""

    model: AutoencoderConfig
    dataset_dir: Path
    seed: int
    weights: Weights = ()
    kind: str = "autoencoder"

    def build(self) -> nn.Module:
        """The autoencoder inside its loss."""
        return AutoencoderLoss(Autoencoder(self.model))

    def subsets(self) -> list[Subset]:
        """The training split."""
        return training_subsets(self.dataset_dir, self.weights)

    def prepare(self, samples: list[Sample]) -> PixelBatch:
        """Decode the clips of a batch, which are of one shape."""
        pixels = torch.stack([to_pixels(decode_clip(sample.payload)) for sample in samples])
        t, h, w = pixels.shape[2:]
        shape = latent_shape(self.model, t, h, w)
        return PixelBatch(
            pixels, randomness.normal(self.seed, "posterior", (sample.position for sample in samples), shape)
        )

    def validation_batch(self, row: IndexRow, payload: bytes) -> PixelBatch:
        """One clip; its noise belongs to its key."""
        pixels = to_pixels(decode_clip(payload))[None]
        shape = latent_shape(self.model, *pixels.shape[2:])
        return PixelBatch(pixels, randomness.normal(self.seed, "validation-posterior", [row.key], shape))

    def previewer(self, device: torch.device) -> None:
        """It makes no clips of its own."""

    def num_tokens(self, bucket: Bucket) -> int:
        """Positions of one clip's latent."""
        return bucket.num_latents

    def outline(self, bucket: Bucket) -> Tensor:
        """The network inside its loss for one clip of the bucket."""
        size = (bucket.num_frames, bucket.height, bucket.width)
        batch = PixelBatch(torch.empty(1, 3, *size), torch.empty(1, *latent_shape(self.model, *size)))
        return AutoencoderLoss(Autoencoder(self.model))(batch)["total"]

    def trained(self) -> dict[str, Any]:
        """The model's size."""
        return {"model": self.model.model_dump(), "seed": self.seed}

    def attachments(self) -> list[Path]:
        """None."""
        return []
