"""The interface of a video autoencoder that is causal in time."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.autoencoder.causal import CausalCache, is_clip_start
from models.autoencoder.config import VideoAutoencoderConfig


@dataclass(frozen=True)
class LatentDistribution:
    """A diagonal Gaussian over latents."""

    mean: Float[Tensor, "b c t h w"]
    log_variance: Float[Tensor, "b c t h w"]

    def sample(self, noise: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """mean + std * noise."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Float[Tensor, " b"]:
        """KL divergence to N(0, I) in nats per latent value: (mu^2 + s^2 - log s^2 - 1) / 2, averaged."""
        terms = self.mean.square() + self.log_variance.exp() - self.log_variance - 1
        return 0.5 * terms.flatten(1).mean(1)


class VideoAutoencoder(nn.Module, ABC):
    """Encoder and decoder of clips with pixels in [-1, 1], of any length, height and width that `compression` takes.

    Training, encoding and sampling use nothing of an autoencoder but what is named here. The number of latent channels
    and the strides follow from its configuration alone: `config.latent_channels`, `config.compression` and
    `config.latent_shape`.
    """

    config: VideoAutoencoderConfig

    @property
    @abstractmethod
    def last_weight(self) -> Tensor:
        """The kernel of the decoder's last layer, at which gradients of losses of the reconstruction are compared."""

    @abstractmethod
    def encode(self, pixels: Float[Tensor, "b 3 t h w"], cache: CausalCache | None = None) -> LatentDistribution:
        """Pixels to a distribution over latents; with a temporal stride f, f k + 1 frames become k + 1.

        Args:
            cache: of this clip, where `pixels` are a chunk of it: f k + 1 frames if it is the first, else f k frames,
                which become k latent frames.

        Raises:
            ValueError: the number of frames does not fit, or a side is not a multiple of the spatial stride.
        """

    @abstractmethod
    def decode(
        self, latents: Float[Tensor, "b c t h w"], cache: CausalCache | None = None
    ) -> Float[Tensor, "b 3 s i j"]:
        """Latents of k + 1 frames to pixels of f k + 1; values may lie slightly outside [-1, 1].

        Args:
            cache: of this clip, where `latents` are a chunk of it: after the first chunk, k latent frames become f k
                frames.
        """

    def check_pixels(self, pixels: Float[Tensor, "b 3 t h w"], cache: CausalCache | None) -> None:
        """Refuse a clip, or a chunk of one, that cannot be encoded.

        Raises:
            ValueError: as `encode`.
        """
        num_frames, height, width = pixels.shape[2:]
        compression = self.config.compression
        if is_clip_start(cache):
            compression.latent_grid(num_frames, height, width)  # raises for a clip that does not fit
        elif not compression.fits_chunk(num_frames):
            factor = compression.temporal_factor
            raise ValueError(
                f"a chunk of {num_frames} frames cannot follow others: each but the first takes {factor}k frames, so "
                f"that the clip has {factor}k + 1"
            )

    def encode_frames(self, chunks: Iterable[Float[Tensor, "b 3 _ h w"]]) -> Iterator[Float[Tensor, "b c _ i j"]]:
        """The latent means of a clip that comes in chunks, in the memory of one chunk and without gradients.

        They equal those of `encode` up to the rounding of kernels, which depends on the length of their input; for a
        clip of a single chunk they are bit-identical.

        Args:
            chunks: first f k + 1 frames, then any number of chunks of f k frames; k may differ between chunks.

        Yields:
            k + 1 latent frames for the first chunk, k for each later one.

        Raises:
            ValueError: a chunk does not fit.
        """
        cache = CausalCache()
        for pixels in chunks:
            with torch.no_grad():
                mean = self.encode(pixels, cache).mean
            yield mean

    def decode_latents(self, chunks: Iterable[Float[Tensor, "b c _ h w"]]) -> Iterator[Float[Tensor, "b 3 _ i j"]]:
        """The pixels of latents that come in chunks: the counterpart of `encode_frames`, with the same exactness.

        Args:
            chunks: first k + 1 latent frames, then any number of chunks of k; k may differ between chunks.

        Yields:
            f k + 1 frames for the first chunk, f k for each later one.
        """
        cache = CausalCache()
        for latents in chunks:
            with torch.no_grad():
                pixels = self.decode(latents, cache)
            yield pixels
