"""The loss of the autoencoder: a weighted sum of the terms that its configuration names.

With an adversarial term, one module holds both networks and has one backward pass. The gradient of the generator's loss
is taken at the reconstruction, before that pass, so none of it reaches the discriminator; the discriminator's loss is
that of a reconstruction without a graph, so none of it reaches the autoencoder.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from models.autoencoder.config import AdversarialConfig, AutoencoderLossConfig
from models.autoencoder.discriminator import Discriminator
from models.autoencoder.losses import (
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    gradient_difference,
    relativistic,
    with_gradient,
)
from models.autoencoder.perceptual import PerceptualDistance
from models.autoencoder.protocol import VideoAutoencoder
from pipeline.train.task import ScheduledLoss


@dataclass(frozen=True)
class Clips:
    """Clips of one shape with pixels in [-1, 1], and the noise that their latents are sampled with."""

    pixels: Float[Tensor, "b 3 t h w"]
    noise: Float[Tensor, "b c s i j"]
    share: float = 1.0  # of the batch; a loss of the batch is the sum of share * (mean over these clips)

    def to(self, device: torch.device) -> Self:
        """The same clips on another device."""
        return type(self)(self.pixels.to(device), self.noise.to(device), self.share)


@dataclass(frozen=True)
class PixelBatch:
    """A batch of clips, and of images where these are mixed in."""

    parts: tuple[Clips, ...]

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(tuple(part.to(device) for part in self.parts))


@dataclass(frozen=True)
class Reconstructed:
    """Clips and what the autoencoder makes of them."""

    pixels: Float[Tensor, "b 3 t h w"]
    made: Float[Tensor, "b 3 t h w"]
    kl: Float[Tensor, ""]
    share: float


def unchanged(x: Tensor) -> Tensor:
    """The mean over ranks where there is one."""
    return x


class AutoencoderLoss(ScheduledLoss):
    """The terms of `config`. In evaluation mode the adversarial ones are left out, which need gradients.

    Args:
        perceptual: measures the perceptual distance, if `config` has that term; None leaves it out.
        mean_over_ranks: of a tensor on every rank, for what the adaptive weight is computed from. Collective.
    """

    def __init__(
        self,
        network: VideoAutoencoder,
        config: AutoencoderLossConfig,
        perceptual: PerceptualDistance | None = None,
        mean_over_ranks: Callable[[Tensor], Tensor] = unchanged,
    ) -> None:
        super().__init__()
        self.network = network
        self.config = config
        self.perceptual = perceptual
        self.mean_over_ranks = mean_over_ranks
        self.discriminator = None if config.adversarial is None else Discriminator(config.adversarial)

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        """Encode, sample the posterior, decode, and compare with the input: a scalar for each term, and their total.

        `total` is the weighted sum of the terms, plus the discriminator's own loss while that is trained.
        """
        parts = [self._reconstructed(part) for part in batch.parts]
        terms = mean_over_parts(parts, self._terms)
        reconstruction = sum_of(weight * terms[name] for name, weight in self._weights().items())
        terms["kl"] = sum_of(part.share * part.kl for part in parts)
        total = reconstruction + self.config.kl * terms["kl"]
        if self.config.adversarial is not None and self.training:
            adversarial = self._adversarial(self.config.adversarial, parts, reconstruction)
            total = total + adversarial.pop("total")
            terms |= adversarial
        return {"total": total} | terms

    def _reconstructed(self, clips: Clips) -> Reconstructed:
        posterior = self.network.encode(clips.pixels)
        made = self.network.decode(posterior.sample(clips.noise))
        return Reconstructed(clips.pixels, made, posterior.kl().mean(), clips.share)

    def _weights(self) -> dict[str, float]:
        """The weights of the terms of reconstruction, by name; terms that are only logged have weight 0."""
        config = self.config
        weights = {"squared_error": config.squared, "absolute_error": config.absolute}
        if config.gradient > 0:
            weights["gradient"] = config.gradient
        if config.perceptual is not None and self.perceptual is not None:
            weights["perceptual"] = config.perceptual.weight
        return weights

    def _terms(self, part: Reconstructed) -> dict[str, Tensor]:
        """The terms of reconstruction, by name."""
        terms = {
            "squared_error": mse_loss(part.made, part.pixels),
            "absolute_error": l1_loss(part.made, part.pixels),
        }
        if self.config.gradient > 0:
            terms["gradient"] = gradient_difference(part.pixels, part.made)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(part.pixels, part.made)
        return terms

    def _adversarial(
        self, config: AdversarialConfig, parts: list[Reconstructed], reconstruction: Tensor
    ) -> dict[str, Tensor]:
        """The losses of both sides, and `total`: what they add to the loss.

        Args:
            reconstruction: the weighted sum of the terms of reconstruction.
        """
        assert self.discriminator is not None
        if self.num_steps < config.start_step:
            # Zero gradients, so that at every ZeRO stage AdamW counts the same steps for both networks.
            corner = parts[0].pixels[:1, :, :1, : 2**config.num_layers, : 2**config.num_layers]
            return {"total": 0.0 * self.discriminator(corner).sum()}
        values, gradients = [], []
        for part in parts:
            made = part.made.detach().requires_grad_()
            value = self._generator_loss(config, part.pixels, made)
            values.append(part.share * value.detach())
            gradients.append(part.share * torch.autograd.grad(value, made)[0])
        made = [part.made for part in parts]
        weight = reconstruction.new_tensor(config.weight)
        if config.adaptive:
            weight = weight * self._adaptive_weight(made, gradients, reconstruction)
        generator = sum_of(
            with_gradient(x, value, gradient) for x, value, gradient in zip(made, values, gradients, strict=True)
        )
        own = mean_over_parts(parts, partial(self._discriminator_loss, config))["discriminator"]
        return {
            "adversarial": generator.detach(),
            "adversarial_weight": weight,
            "discriminator": own,
            "total": weight * generator + own,
        }

    def _generator_loss(self, config: AdversarialConfig, pixels: Tensor, made: Tensor) -> Tensor:
        assert self.discriminator is not None
        if config.kind == "hinge":
            return generator_hinge(self.discriminator(made))
        with torch.no_grad():
            real = self.discriminator(pixels)
        return relativistic(self.discriminator(made), real)

    def _discriminator_loss(self, config: AdversarialConfig, part: Reconstructed) -> dict[str, Tensor]:
        assert self.discriminator is not None
        real, made = self.discriminator(torch.cat([part.pixels, part.made.detach()])).chunk(2)
        loss = discriminator_hinge if config.kind == "hinge" else relativistic
        return {"discriminator": loss(real, made)}

    def _adaptive_weight(self, made: list[Tensor], gradients: list[Tensor], reconstruction: Tensor) -> Tensor:
        """How much longer the gradient of `reconstruction` at the decoder's last layer is than the adversarial one.

        Args:
            gradients: of the adversarial term at each of `made`.
        """
        last = self.network.last_weight
        scale = sum(x.numel() for x in made)  # gradients of means over so many values would be 0 in float16
        (first,) = torch.autograd.grad(scale * reconstruction, last, retain_graph=True)
        (second,) = torch.autograd.grad(made, last, [scale * gradient for gradient in gradients], retain_graph=True)
        both = self.mean_over_ranks(torch.stack([first.float(), second.float()]) / scale)
        return adaptive_weight(both[0], both[1])


def sum_of(values: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, of which there is at least one."""
    return reduce(add, values)


def mean_over_parts(
    parts: list[Reconstructed], measure: Callable[[Reconstructed], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Each entry of what `measure` returns, averaged over the clips of all parts."""
    measured = [(part.share, measure(part)) for part in parts]
    return {name: sum_of(share * values[name] for share, values in measured) for name in measured[0][1]}
