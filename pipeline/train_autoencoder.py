"""What the training loop needs to know of the autoencoder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from data.buckets import Bucket
from data.loader import Sample, Subset, subsets_of
from data.shards import DatasetError, IndexRow, read_index
from data.video import Frames, decode_clip
from models.autoencoder import Autoencoder, AutoencoderConfig, latent_shape
from pipeline import seeds


def to_pixels(frames: Frames) -> Float[Tensor, "3 t h w"]:
    """uint8 (t h w c) from a video to float (c t h w) in [-1, 1]."""
    return rearrange(torch.from_numpy(np.asarray(frames)).float() / 127.5 - 1, "t h w c -> c t h w")


def to_frames(pixels: Float[Tensor, "3 t h w"]) -> Frames:
    """The inverse of `to_pixels`, rounded and clipped."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "c t h w -> t h w c").cpu().numpy()


Weights = tuple[tuple[str, float], ...]  # of the datasets of a mix, by name: how often each of their samples is seen


def training_subsets(dataset_dir: Path, weights: Weights) -> list[Subset]:
    """The training split of a dataset.

    Raises:
        DatasetError: it is empty.
    """
    subsets = subsets_of(dataset_dir, read_index(dataset_dir, "train"), dict(weights))
    if not subsets:
        raise DatasetError(f"{dataset_dir} has no samples to train on; lower data.validation_fraction or add videos")
    return subsets


def load_autoencoder(path: Path) -> Autoencoder:
    """What `encode.export_autoencoder` wrote, ready to use."""
    with safe_open(path, framework="pt") as file:
        network = Autoencoder(AutoencoderConfig(**json.loads(file.metadata()["config"])))
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    return network.eval().requires_grad_(False)


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
        return PixelBatch(pixels, seeds.normal(self.seed, "posterior", (sample.position for sample in samples), shape))

    def validation_batch(self, row: IndexRow, payload: bytes) -> PixelBatch:
        """One clip; its noise belongs to its key."""
        pixels = to_pixels(decode_clip(payload))[None]
        shape = latent_shape(self.model, *pixels.shape[2:])
        return PixelBatch(pixels, seeds.normal(self.seed, "validation-posterior", [row.key], shape))

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
