"""Train the autoencoder to reconstruct clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.dataset.buckets import Bucket
from data.dataset.index import IndexRow
from data.stream.loader import Sample, Subset
from data.video.codec import decode_clip
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import DEFAULT_LOSS, AutoencoderConfig, AutoencoderLossConfig
from models.autoencoder.perceptual import PerceptualDistance
from pipeline.distributed.collectives import mean_over_ranks
from pipeline.encode.codec import to_pixels
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.train.autoencoder_settings import network_settings
from pipeline.train.config import TrainConfig
from pipeline.train.stream import Weights, training_subsets
from pipeline.train.task import single_group
from pipeline.train.tasks.autoencoder_loss import AutoencoderLoss, Clips, PixelBatch


@dataclass(frozen=True)
class AutoencoderTask:
    """Train the autoencoder on a folder of clip shards."""

    model: AutoencoderConfig
    dataset_dir: Path
    seed: int
    weights: Weights = ()
    loss: AutoencoderLossConfig = DEFAULT_LOSS
    image_share: float = 0.0  # of the clips, in [0, 1]
    kind: str = "autoencoder"

    def build(self, placement: Placement = WHOLE) -> nn.Module:  # noqa: ARG002 - all weights are new
        """The autoencoder, and the discriminator if there is one, inside their loss.

        Raises:
            PerceptualError: the file of the perceptual network cannot be used.
        """
        term = self.loss.perceptual
        perceptual = None if term is None else PerceptualDistance(term.network)
        return AutoencoderLoss(build_autoencoder(self.model), self.loss, perceptual, mean_over_ranks)

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """That of the autoencoder, and that of the discriminator if there is one."""
        if (term := self.loss.adversarial) is None:
            return single_group(config)
        return [
            ParameterGroup(weight_decay=config.weight_decay, betas=config.betas, prefix="network."),
            ParameterGroup(
                weight_decay=0.0,
                betas=term.betas,
                prefix="discriminator.",
                learning_rate_scale=term.learning_rate_scale,
            ),
        ]

    def subsets(self) -> list[Subset]:
        """The training split."""
        return training_subsets(self.dataset_dir, self.weights)

    def collate(self, samples: list[Sample]) -> PixelBatch:
        """A batch of clips of one shape, and of images.

        The posterior's noise, which clips are images, and which frames, are functions of each sample's position.
        With images there are always two parts, so that all ranks run equal forward passes, as ZeRO-3 needs: where all
        clips are images or none is, a clip of the other kind is there with a share of 0.
        """
        pixels = torch.stack([to_pixels(decode_clip(sample.payload)) for sample in samples])
        positions = [sample.position for sample in samples]
        if self.image_share == 0:
            return PixelBatch((self._clips(pixels, positions, share=1.0),))
        is_image = (randomness.uniform(self.seed, "image", positions) < self.image_share).tolist()
        frame = (randomness.uniform(self.seed, "image-frame", positions) * pixels.shape[2]).long().tolist()
        images = [number for number, chosen in enumerate(is_image) if chosen]
        videos = [number for number, chosen in enumerate(is_image) if not chosen]
        shares = [len(part) / len(samples) for part in (videos, images)]
        videos, images = videos or [0], images or [0]
        stills = torch.stack([pixels[number, :, frame[number]][:, None] for number in images])
        return PixelBatch(
            (
                self._clips(pixels[videos], [positions[number] for number in videos], shares[0]),
                self._clips(stills, [positions[number] for number in images], shares[1]),
            )
        )

    def _clips(self, pixels: Tensor, addresses: Sequence[int | str], share: float) -> Clips:
        shape = self.model.latent_shape(*pixels.shape[2:])
        return Clips(pixels, randomness.normal(self.seed, "posterior", addresses, shape), share)

    def pack(self, batches: list[PixelBatch]) -> PixelBatch:
        """Not of this network, whose settings refuse `mixed_buckets`."""
        raise NotImplementedError(f"an autoencoder takes {len(batches)} shapes one at a time")

    def validation_batch(self, row: IndexRow, payload: bytes) -> PixelBatch:
        """One clip; its noise is a function of its key."""
        pixels = to_pixels(decode_clip(payload))[None]
        shape = self.model.latent_shape(*pixels.shape[2:])
        return PixelBatch((Clips(pixels, randomness.normal(self.seed, "validation-posterior", [row.key], shape)),))

    def previewer(self, device: torch.device) -> None:
        """None: an autoencoder generates no clips."""

    def num_tokens(self, bucket: Bucket) -> int:
        """Number of latent positions of one clip."""
        return prod(bucket.latent_grid(self.model.compression))

    def flops_probe(self, bucket: Bucket) -> Tensor:
        """The loss of one clip of the bucket, without the other networks: work of the autoencoder alone is counted."""
        size = (bucket.num_frames, bucket.height, bucket.width)
        clips = Clips(torch.empty(1, 3, *size), torch.empty(1, *self.model.latent_shape(*size)))
        return AutoencoderLoss(build_autoencoder(self.model), self.loss).eval()(PixelBatch((clips,)))["total"]

    def metadata(self) -> dict[str, Any]:
        """The architecture, the loss where it is not the one there has always been, and the seed."""
        return network_settings(self.model, self.loss) | {"seed": self.seed}

    def attachments(self) -> list[Path]:
        """None: a checkpoint of the autoencoder needs no other files."""
        return []
