"""Terms of the autoencoder's loss: pure functions of pixels, of logits and of gradients."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import l1_loss, relu, softplus

MAX_ADAPTIVE_WEIGHT = 1e4
DELTA = 1e-6  # of Esser et al. 2021, eq. 7


def gradient_difference(
    pixels: Float[Tensor, "b c t h w"], reconstruction: Float[Tensor, "b c t h w"]
) -> Float[Tensor, ""]:
    """Mean of | |dx| - |dy| | over the differences of neighbours in height and in width (Mathieu et al. 2016, eq. 6).

    Pixel errors average over fine structure; this term compares its strength. The exponent alpha is 1.
    """
    terms = [l1_loss(reconstruction.diff(dim=axis).abs(), pixels.diff(dim=axis).abs()) for axis in (3, 4)]
    return (terms[0] + terms[1]) / 2


def discriminator_hinge(real: Float[Tensor, "..."], made: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """mean max(0, 1 - real) + mean max(0, 1 + made): the discriminator's loss (Lim & Ye 2017)."""
    return relu(1 - real).mean() + relu(1 + made).mean()


def generator_hinge(made: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """-mean made: what the generator minimises (Lim & Ye 2017)."""
    return -made.mean()


def relativistic(better: Float[Tensor, "*patches"], worse: Float[Tensor, "*patches"]) -> Float[Tensor, ""]:
    """mean log(1 + exp(worse - better)), 0 where `better` is judged far more real (RSGAN of Jolicoeur-Martineau 2018).

    The discriminator's loss of (clip, reconstruction), and the generator's of (reconstruction, clip). Logits are those
    of the same patches, so that what they have in common, such as brightness, cancels.
    """
    return softplus(worse - better).mean()


def adaptive_weight(reconstruction: Float[Tensor, "..."], adversarial: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """|reconstruction| / (|adversarial| + 1e-6), at most 10^4, computed in float32 (Esser et al. 2021, eq. 7).

    Args:
        reconstruction, adversarial: gradients of two terms at the decoder's last layer.
    """
    one, other = (torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in (reconstruction, adversarial))
    return (one / (other + DELTA)).clamp_max(MAX_ADAPTIVE_WEIGHT)


def with_gradient(
    x: Float[Tensor, "*shape"], value: Float[Tensor, ""], gradient: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """A scalar of a given value whose gradient at `x` is `gradient`, however both were computed."""
    linear = (x * gradient).sum()
    return value.detach() + (linear - linear.detach())
