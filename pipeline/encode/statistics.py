"""Normalisation of latents by their mean and standard deviation per channel."""

import torch
from jaxtyping import Float
from torch import Tensor

from data.dataset.manifest import LatentStats


def normalize(latents: Float[Tensor, "b c t h w"], stats: LatentStats) -> Float[Tensor, "b c t h w"]:
    """Scale latents to mean 0 and variance 1 per channel, by the statistics of their dataset."""
    mean, std = (torch.tensor(values, device=latents.device)[:, None, None, None] for values in (stats.mean, stats.std))
    return (latents - mean) / std


def denormalize(latents: Float[Tensor, "b c t h w"], stats: LatentStats) -> Float[Tensor, "b c t h w"]:
    """The inverse of `normalize`."""
    mean, std = (torch.tensor(values, device=latents.device)[:, None, None, None] for values in (stats.mean, stats.std))
    return latents * std + mean
