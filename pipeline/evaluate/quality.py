"""The latent report: what the channels of the latents carry, and how reconstructions differ from their clips."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from models.autoencoder.quality import flicker, high_frequency_energy, ssim
from pipeline.report.figures import AutoencoderQuality

DEAD_VARIANCE = 0.01  # of latent means: a channel below it is inactive (Burda et al. 2016)
LEVELS = 127.5  # of 8 bits, per unit of pixels in [-1, 1]


class Mean:
    """The mean of values that come in parts."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: Tensor) -> None:
        """Count more values."""
        self._sum, self._count = self._sum + float(values.double().sum()), self._count + values.numel()

    def value(self) -> float:
        """The mean so far; 0 of no values."""
        return self._sum / max(1, self._count)


class QualityMeter:
    """Measures clips that come in chunks, one clip after the other."""

    def __init__(self, num_channels: int) -> None:
        self._ssim, self._flicker, self._high, self._source_high = Mean(), Mean(), Mean(), Mean()
        self._num_latents, self._sums, self._squares = (
            0,
            torch.zeros(num_channels).double(),
            torch.zeros(num_channels).double(),
        )
        self._last_error: Tensor | None = None

    def begin_clip(self) -> None:
        """What comes next is another clip."""
        self._last_error = None

    def add(
        self,
        pixels: Float[Tensor, "b 3 t h w"],
        reconstruction: Float[Tensor, "b 3 t h w"],
        latents: Float[Tensor, "b c s i j"],
    ) -> None:
        """Measure a clip, or the next chunk of one; `latents` are those of the same frames."""
        shown = reconstruction.float().clamp(-1, 1)
        error = shown - pixels
        with torch.autocast(pixels.device.type, enabled=False):
            self._ssim.add(ssim(pixels, shown))
        self._high.add(high_frequency_energy(shown))
        self._source_high.add(high_frequency_energy(pixels))
        chain = error if self._last_error is None else torch.cat([self._last_error, error], dim=2)
        self._flicker.add(flicker(chain))
        self._last_error = error[:, :, -1:]
        values = rearrange(latents.double(), "b c t h w -> c (b t h w)")
        self._num_latents += values.shape[1]
        self._sums = self._sums + values.sum(1)
        self._squares = self._squares + values.square().sum(1)

    def result(self) -> AutoencoderQuality:
        """The report on all clips so far, of which there is at least one."""
        mean = self._sums / self._num_latents
        variance = (self._squares / self._num_latents - mean.square()).clamp_min(0)
        source = self._source_high.value()
        return AutoencoderQuality(
            ssim=self._ssim.value(),
            flicker_levels=LEVELS * self._flicker.value(),
            high_frequency_share=self._high.value() / source if source else None,
            latent_std=variance.sqrt().tolist(),
            dead_channels=[channel for channel, value in enumerate(variance.tolist()) if value < DEAD_VARIANCE],
        )
