"""Train a network that predicts tokens, by discrete flow matching on the tokens of latents."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow
from data.dataset.latents import read_latents
from data.stream.loader import Sample
from models.flow.discrete import TokenPath, token_loss
from models.networks.build import build_token_network
from models.networks.protocol import Conditions
from models.networks.token_network import TokenNetwork
from models.text.caption import Caption
from models.tokens.config import TokenizerConfig
from pipeline.encode.codec import load_autoencoder
from pipeline.encode.statistics import normalize
from pipeline.encode.tokens import load_tokenizer, shared_tokenizer
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.run.fingerprints import stored
from pipeline.sample.tokens import token_path
from pipeline.train.tasks.captioned import CaptionedTask
from pipeline.train.tasks.token_preview import TokenPreviewer, TokenQuery
from pipeline.train.time_bins import NUM_TIME_BINS, binned


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of the data and of the path at a time in [0, 1], captions and frame rates."""

    x_1: Int[Tensor, "b g t h w"]
    x_t: Int[Tensor, "b g t h w"]
    t: Float[Tensor, " b"]
    caption: Caption
    fps: Float[Tensor, " b"]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(
            self.x_1.to(device), self.x_t.to(device), self.t.to(device), self.caption.to(device), self.fps.to(device)
        )


class TokenLoss(nn.Module):
    """Discrete flow matching (Gat et al. 2024, eq. 24): the cross-entropy of tokens that the source may have made."""

    def __init__(self, network: TokenNetwork, path: TokenPath) -> None:
        super().__init__()
        self.network, self.path = network, path

    def forward(self, batch: TokenBatch | TokenQuery) -> dict[str, Tensor]:
        """The mean over clips of that over their tokens, also by time bin (see `binned`).

        For a `TokenQuery`: {"logits": the logits, (b g t h w k)}.
        """
        logits = self.network.given(Conditions(batch.fps))(batch.x_t, batch.t, batch.caption)
        if isinstance(batch, TokenQuery):
            return {"logits": logits}
        loss = token_loss(self.path, logits, batch.x_t, batch.x_1, batch.t)
        return {"total": loss.mean()} | binned(loss, batch.t)


@dataclass(frozen=True, kw_only=True)
class TokenTask(CaptionedTask):
    """Train a network that predicts tokens on a folder of latent shards; the flow has `tokens`."""

    tokens: TokenizerConfig
    tokenizer_path: Path  # exported weights, which are linked into every checkpoint

    @classmethod
    def of(cls, task: CaptionedTask, tokens: TokenizerConfig, tokenizer_path: Path) -> Self:
        """The training of `task`, on tokens."""
        shared = {field.name: getattr(task, field.name) for field in fields(CaptionedTask)}
        return cls(**shared, tokens=tokens, tokenizer_path=tokenizer_path)

    @property
    def _path(self) -> TokenPath:
        assert self.flow.tokens is not None
        return token_path(self.flow.tokens, self.tokens)

    def build(self, placement: Placement = WHOLE) -> nn.Module:  # noqa: ARG002 - all weights are new
        """The network inside its loss."""
        return TokenLoss(self._token_network(), self._path)

    def _token_network(self) -> TokenNetwork:
        width = None if self.text_encoder is None else self.text_encoder.width
        return build_token_network(self.model, self.tokens, width)

    def collate(self, samples: list[Sample]) -> TokenBatch:
        """A batch of tokens of one shape. Time, tokens of the path and dropped captions are functions of positions."""
        positions = [sample.position for sample in samples]
        payloads = [sample.payload for sample in samples]
        dropped = randomness.uniform(self.seed, "caption-drop", positions) < self.flow.caption_dropout
        t = self._times(positions, num_frames=1)
        caption = self._captions([sample.caption for sample in samples], payloads, dropped)
        fps = torch.tensor([sample.fps for sample in samples], dtype=torch.float32)
        return self._batch("tokens", positions, payloads, t, caption, fps)

    def _batch(
        self,
        purpose: str,
        addresses: Sequence[int | str],
        payloads: Sequence[bytes | memoryview],
        t: Float[Tensor, " b"],
        caption: Caption,
        fps: Float[Tensor, " b"],
    ) -> TokenBatch:
        tokenizer = shared_tokenizer(self.tokenizer_path)
        x_1 = tokenizer.encode(normalize(read_latents(payloads).float(), self.latent_stats))
        shape = tuple(x_1.shape[1:])
        drawn = randomness.uniform(self.seed, purpose, addresses, (2, *shape))
        x_t = self._path.sample(self._path.start(drawn[:, 0]), x_1, t, drawn[:, 1])
        return TokenBatch(x_1, x_t, t, caption, fps)

    def validation_batch(self, row: IndexRow, payload: bytes) -> TokenBatch:
        """One clip repeated for every time bin; times and tokens of the path are functions of its key."""
        addresses = [f"{row.key} {number}" for number in range(NUM_TIME_BINS)]
        payloads = [payload] * NUM_TIME_BINS
        t = (torch.arange(NUM_TIME_BINS) + randomness.uniform(self.seed, "validation-time", addresses)) / NUM_TIME_BINS
        kept = torch.zeros(NUM_TIME_BINS, dtype=torch.bool)
        caption = self._captions([row.caption] * NUM_TIME_BINS, payloads, kept)
        fps = torch.full((NUM_TIME_BINS,), row.fps)
        return self._batch("validation-tokens", addresses, payloads, t, caption, fps)

    def previewer(self, device: torch.device) -> TokenPreviewer:
        """As `CaptionedTask.preview_settings`."""
        config, bucket, read = self.preview_settings()
        autoencoder = load_autoencoder(self.autoencoder_path).to(device)
        tokenizer = load_tokenizer(self.tokenizer_path).to(device)
        return TokenPreviewer(config, self.flow, self.latent_stats, bucket, read, tokenizer, autoencoder, device)

    def pack(self, batches: list[TokenBatch]) -> TokenBatch:
        """Not of tokens, whose settings refuse `mixed_buckets`."""
        raise NotImplementedError(f"tokens of {len(batches)} shapes are taken one shape at a time")

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """A scalar whose forward and backward pass are those of training on one clip of the bucket."""
        tokens = torch.empty(1, self.tokens.codes, *bucket.latent_grid(self.compression), dtype=torch.long)
        network = self._token_network().given(Conditions(torch.ones(1)))
        return network(tokens, torch.zeros(1), self.probe_caption().to(tokens.device)).mean()

    def metadata(self) -> dict[str, Any]:
        """Everything that sampling needs besides weights."""
        return super().metadata() | {"tokenizer": stored(self.tokens)}

    def attachments(self) -> list[Path]:
        """The autoencoder and the tokeniser."""
        return [self.autoencoder_path, self.tokenizer_path]
