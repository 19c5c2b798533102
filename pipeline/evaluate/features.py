"""Networks that turn clips and frames into features, whose distributions are compared.

Figures in publications are made with networks that have learnt from large collections, such as I3D for clips and
Inception for frames. Such a network is read from a TorchScript file. Without one, random convolutions are used: they
see colours, edges and motion, and tell apart two trainings on the same data, but their distances mean nothing beside
those of publications.

Every clip goes through a network alone, so its features do not depend on its neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from data.errors import ReelflowError
from data.files.checksums import file_sha256
from models.torchscript import TorchScriptError, last_line, load_torchscript

I3D_OPTIONS = {"rescale": True, "resize": True, "return_features": True}
"""Arguments of the I3D network that is in general use as TorchScript; it takes pixels in [0, 255]."""
WIDTHS = (16, 32, 64)
LARGEST_SIDE = 128  # of frames for the random convolutions


class FeatureError(ReelflowError, ValueError):
    """A feature network that cannot be used; the message names the file."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A network, and what records say of it."""

    name: str
    fingerprint: str
    compute: Callable[[Float[Tensor, "b ..."]], Float[Tensor, "b d"]]
    """Features of clips (b 3 t h w), or of frames (b 3 h w), with pixels in [0, 255]."""


class RandomConvolutions(nn.Module):
    """Convolutions with random weights; the features are mean and standard deviation of each channel of each layer.

    Args:
        num_axes: 3 for clips, 2 for frames.
    """

    def __init__(self, num_axes: int) -> None:
        super().__init__()
        convolution: Any = {2: nn.Conv2d, 3: nn.Conv3d}[num_axes]
        self.num_axes = num_axes
        stride, padding = ((1, 2, 2), (0, 1, 1)) if num_axes == 3 else (2, 1)
        channels = (3, *WIDTHS)
        self.layers = nn.ModuleList(
            convolution(before, after, 3, stride=stride, padding=padding, bias=False)
            for before, after in zip(channels[:-1], channels[1:], strict=True)
        )
        generator = torch.Generator().manual_seed(0)
        for layer in self.layers:
            weight = layer.get_parameter("weight")
            nn.init.normal_(weight, std=(2 / weight[0].numel()) ** 0.5, generator=generator)

    def forward(self, pixels: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b d"]:
        """Features of pixels in [0, 255]."""
        x, found = _shrunk(pixels) / 127.5 - 1, []
        for layer in self.layers:
            if self.num_axes == 3:  # padded outside: the first and the last frame are repeated
                x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
            x = relu(layer(x))
            values = x.flatten(2)
            found += [values.mean(2), values.std(2, unbiased=False)]
        return torch.cat(found, dim=1)


def _shrunk(pixels: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b 3 ..."]:
    """The pixels with no side longer than `LARGEST_SIDE`."""
    *_, height, width = pixels.shape
    factor = max(height, width) / LARGEST_SIDE
    if factor <= 1:
        return pixels
    size = (round(height / factor), round(width / factor))
    frames = pixels if pixels.ndim == 4 else rearrange(pixels, "b c t h w -> (b t) c h w")
    frames = interpolate(frames, size, mode="bilinear", antialias=True)
    return frames if pixels.ndim == 4 else rearrange(frames, "(b t) c h w -> b c t h w", b=len(pixels))


def random_convolutions(num_axes: int, device: torch.device) -> FeatureNetwork:
    """The network that is used where no file is named: for clips with 3 axes, for frames with 2."""
    module = RandomConvolutions(num_axes).to(device).requires_grad_(False)
    name = f"random convolutions in {num_axes} axes (seed 0; not comparable with publications)"
    return FeatureNetwork(name, f"random-convolutions-{num_axes}-1", module)


def read_features(path: Path, num_axes: int, device: torch.device) -> FeatureNetwork:
    """A network from a TorchScript file, which is a program: open only files that you trust.

    It is called as I3D is, where its `forward` has the arguments of `I3D_OPTIONS`; else with pixels in [-1, 1].

    Raises:
        FeatureError: there is no such file, or it holds no network that gives (b d) for clips or frames.
    """
    try:
        module = load_torchscript(path, device)
    except TorchScriptError as error:
        raise FeatureError(f"{path}: {error}") from error
    arguments = {argument.name for argument in module.forward.schema.arguments}
    is_i3d = arguments.issuperset(I3D_OPTIONS)

    def compute(pixels: Float[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        try:
            with torch.jit.optimized_execution(False):  # whose rounding changes after a few calls
                features = module(pixels, **I3D_OPTIONS) if is_i3d else module(pixels / 127.5 - 1)
        except RuntimeError as error:
            shape = tuple(pixels.shape)
            raise FeatureError(f"{path} does not take pixels of shape {shape}: {last_line(error)}") from error
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(pixels):
            raise FeatureError(f"{path} gives {shape} for {len(pixels)} inputs, and not one vector for each")
        return features.float()

    what = {3: "clips", 2: "frames"}[num_axes]
    return FeatureNetwork(f"{path.name} on {what}", file_sha256(path), compute)


def pixels_of(frames: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "1 3 t h w"]:
    """A clip as feature networks take it."""
    return rearrange(frames, "t h w c -> 1 c t h w").float()
