"""What trainings on latents with captions share: their data, their captions, and what a checkpoint says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.compression import COMPRESSION, Compression
from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.stream.loader import Subset
from models.flow.objective import stratified, training_times
from models.flow.spec import FlowSpec
from models.networks.config import NetworkConfig
from models.text.caption import Caption, CaptionReader
from models.text.embeddings import CaptionEmbeddings
from pipeline.checkpoint.config import LoraConfig
from pipeline.encode.captions import StoredCaptions, byte_captions, read_embeddings
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.run import randomness
from pipeline.run.fingerprints import stored
from pipeline.sample.config import SampleConfig
from pipeline.train.config import TrainConfig
from pipeline.train.stream import Weights, training_subsets
from pipeline.train.task import single_group


@dataclass(frozen=True)
class CaptionedTask:
    """A training on a folder of latent shards with captions."""

    model: NetworkConfig
    flow: FlowSpec
    buckets: tuple[Bucket, ...]  # the bucket with the most clips first
    latent_stats: LatentStats
    dataset_dir: Path
    autoencoder_path: Path  # exported weights, which are linked into every checkpoint
    seed: int
    weights: Weights = ()
    text_encoder: TextEncoderRecord | None = None  # None: captions are read as bytes or words
    base_path: Path | None = None  # exported weights to start from
    base: str | None = None  # fingerprint of the checkpoint that they were exported from
    base_model: NetworkConfig | None = None  # what they are of, where that is less than `model`; None: `model`
    lora: LoraConfig | None = None
    compression: Compression = COMPRESSION  # of the autoencoder
    sampling: tuple[
        tuple[str, Any], ...
    ] = ()  # settings that the run samples it with: previews, and those who sample it later
    kind: str = "dit"

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """One: that of the network."""
        return single_group(config)

    def subsets(self) -> list[Subset]:
        """The training split."""
        return training_subsets(self.dataset_dir, self.weights)

    def _captions(
        self, captions: list[str], payloads: Sequence[bytes | memoryview], dropped: Bool[Tensor, " b"]
    ) -> Caption:
        """The captions of samples, replaced by the null caption where `dropped` is true."""
        if self.text_encoder is not None:
            return read_embeddings(payloads).replaced(dropped, self._stored_captions().null())
        kept = [
            self.flow.null_caption if drop else caption
            for caption, drop in zip(captions, dropped.tolist(), strict=True)
        ]
        return byte_captions(self.model.caption_text)(kept)

    def _stored_captions(self) -> StoredCaptions:
        return StoredCaptions(self.dataset_dir, self.flow.null_caption)

    def preview_settings(self) -> tuple[SampleConfig, Bucket, CaptionReader]:
        """As the run samples: settings, the bucket if it was trained on, otherwise that with the most clips, captions.

        With a pretrained text encoder, which training does not load, there is no negative prompt.
        """
        config = SampleConfig.model_validate(dict(self.sampling))
        if self.text_encoder is not None:
            config = config.model_copy(update={"negative_prompt": None})
        bucket = next((bucket for bucket in self.buckets if bucket.name == config.bucket), self.buckets[0])
        read = byte_captions(self.model.caption_text) if self.text_encoder is None else self._stored_captions()
        return config, bucket, read

    def num_tokens(self, bucket: Bucket) -> int:
        """Tokens of one clip."""
        return self.model.num_tokens(bucket.latent_grid(self.compression))

    def probe_caption(self, num_clips: int = 1) -> Caption:
        """Captions of the length that training computes with."""
        if self.text_encoder is None:
            return byte_captions(self.model.caption_text)([""] * num_clips)
        shape = (num_clips, self.text_encoder.max_tokens)
        return CaptionEmbeddings(torch.zeros(*shape, self.text_encoder.width), torch.ones(shape, dtype=torch.bool))

    def _times(self, positions: list[int], num_frames: int) -> Tensor:
        if self.flow.times_per == "frame":
            uniform = randomness.uniform(self.seed, "frame-times", positions, (1, num_frames))  # b 1 t
        else:
            uniform = stratified(torch.tensor(positions), randomness.uniform(self.seed, "time", [0]).item())  # b
        return training_times(self.flow.times, uniform).float()

    def metadata(self) -> dict[str, Any]:
        """Everything that sampling needs besides weights."""
        return {
            "model": stored(self.model),
            "flow": stored(self.flow),
            "buckets": [bucket.model_dump() for bucket in self.buckets],
            "latent_stats": self.latent_stats.model_dump(),
            "text_encoder": None if self.text_encoder is None else self.text_encoder.model_dump(),
            "seed": self.seed,
            **({} if self.base is None else {"base": self.base}),
            **({} if self.lora is None else {"lora": self.lora.model_dump()}),
            **({"sampling": dict(self.sampling)} if self.sampling else {}),
        }

    def attachments(self) -> list[Path]:
        """The autoencoder, and the base network of adapters: sampling needs no other files than a checkpoint."""
        adapted = [self.base_path] if self.lora is not None and self.base_path is not None else []
        return [self.autoencoder_path, *adapted]
