"""Train the tokeniser to rebuild normalised latents."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data.dataset.buckets import Bucket
from data.dataset.compression import COMPRESSION, Compression
from data.dataset.index import IndexRow
from data.dataset.latents import read_latents
from data.dataset.manifest import LatentStats
from data.stream.loader import Sample, Subset
from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer
from pipeline.encode.statistics import normalize
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run.fingerprints import stored
from pipeline.train.config import TrainConfig
from pipeline.train.stream import Weights, training_subsets
from pipeline.train.task import single_group


@dataclass(frozen=True)
class LatentBatch:
    """Normalised latents."""

    latents: Float[Tensor, "b c t h w"]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(self.latents.to(device))


class TokenizerLoss(nn.Module):
    """Mean squared error of latents rebuilt from their tokens: the share of the variance that is lost."""

    def __init__(self, network: Tokenizer) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: LatentBatch) -> dict[str, Tensor]:
        """{"total": the mean over the batch}."""
        return {"total": (self.network(batch.latents) - batch.latents).square().mean()}


@dataclass(frozen=True)
class TokenizerTask:
    """Train the tokeniser on a folder of latent shards."""

    model: TokenizerConfig
    latent_stats: LatentStats
    dataset_dir: Path
    seed: int
    weights: Weights = ()
    compression: Compression = COMPRESSION  # of the autoencoder
    kind: str = "tokenizer"

    def build(self, placement: Placement = WHOLE) -> nn.Module:  # noqa: ARG002 - all weights are new
        """The tokeniser inside its loss."""
        return TokenizerLoss(Tokenizer(self.model, self.latent_stats.num_channels))

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """One."""
        return single_group(config)

    def subsets(self) -> list[Subset]:
        """The training split."""
        return training_subsets(self.dataset_dir, self.weights)

    def collate(self, samples: list[Sample]) -> LatentBatch:
        """Latents of one shape. Nothing is drawn."""
        return self._batch([sample.payload for sample in samples])

    def _batch(self, payloads: list[bytes | memoryview]) -> LatentBatch:
        return LatentBatch(normalize(read_latents(payloads).float(), self.latent_stats))

    def pack(self, batches: list[LatentBatch]) -> LatentBatch:
        """Not of this network, whose settings refuse `mixed_buckets`."""
        raise NotImplementedError(f"a tokeniser takes {len(batches)} shapes one at a time")

    def validation_batch(self, row: IndexRow, payload: bytes) -> LatentBatch:  # noqa: ARG002 - of the interface
        """One clip."""
        return self._batch([payload])

    def previewer(self, device: torch.device) -> None:
        """None: a tokeniser generates no clips."""

    def num_tokens(self, bucket: Bucket) -> int:
        """Number of latent positions of one clip."""
        return prod(bucket.latent_grid(self.compression))

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """The loss of one clip of the bucket."""
        latents = torch.empty(1, self.latent_stats.num_channels, *bucket.latent_grid(self.compression))
        return self.build()(LatentBatch(latents))["total"]

    def metadata(self) -> dict[str, Any]:
        """The network, the statistics of its latents, and the seed."""
        return {"model": stored(self.model), "latent_stats": self.latent_stats.model_dump(), "seed": self.seed}

    def attachments(self) -> list[Path]:
        """None: a checkpoint of the tokeniser needs no other files."""
        return []
