"""How a reconstruction looks beside its clip: structure, fine detail and steadiness. Pure functions of pixels."""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SIGMA = 11, 1.5  # pixels, of Wang et al. 2004, section III-C
RANGE = 2.0  # of pixels in [-1, 1]
C_1, C_2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2  # of the same section
HIGH_FREQUENCY = 0.25  # cycles per pixel: half of the highest frequency along an axis


def ssim(one: Float[Tensor, "b c t h w"], other: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t"]:
    """Structural similarity of each frame, 1 for equal ones (Wang et al. 2004, eq. 13), averaged over channels.

    Statistics are those of a Gaussian window of 11 x 11 pixels, at each place where it lies inside the frame; of a
    smaller one where a side is shorter.
    """
    num_clips, num_channels = one.shape[:2]
    x, y = (rearrange(clips.float(), "b c t h w -> (b c t) 1 h w") for clips in (one, other))

    def local(values: Tensor) -> Tensor:
        return conv2d(conv2d(values, _window(values.shape[2], values)), _window(values.shape[3], values).mT)

    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + C_1) * (2 * covariance + C_2)
    below = (mean_x**2 + mean_y**2 + C_1) * (variance_x + variance_y + C_2)
    return reduce(above / below, "(b c t) 1 i j -> b t", "mean", b=num_clips, c=num_channels)


def _window(side: int, like: Tensor) -> Float[Tensor, "1 1 size 1"]:
    """Gaussian weights along the height, of a frame of that side; they add up to 1."""
    size = min(WINDOW, side)
    places = torch.arange(size, device=like.device) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    return rearrange(weights / weights.sum(), "size -> 1 1 size 1")


def high_frequency_energy(pixels: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t"]:
    """Mean square of what is left of each frame without its low frequencies, averaged over channels.

    Frequencies are low up to a quarter of a cycle per pixel, in any direction.
    """
    height, width = pixels.shape[3:]
    spectrum = torch.fft.fft2(pixels.float(), norm="ortho").abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=pixels.device) for side in (height, width))
    is_high = torch.hypot(rearrange(rows, "h -> h 1"), columns) > HIGH_FREQUENCY
    return reduce(spectrum * is_high, "b c t h w -> b t", "mean")


def flicker(error: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b s"]:
    """Mean absolute change of a reconstruction's error from each frame to the next; 0 for an error that stands still.

    Args:
        error: reconstruction - pixels, of t frames.

    Returns:
        Values for the t - 1 pairs of frames.
    """
    return reduce(error.float().diff(dim=2).abs(), "b c t h w -> b t", "mean")
