"""The distance of images in the features of a network that is read from a TorchScript file (LPIPS; Zhang et al. 2018).

The network takes images (n 3 h w) in [-1, 1] and returns a list of feature maps (n c i j), which are compared here by
equation 1 of the paper with weights of 1. A network of two inputs, such as LPIPS as a whole with its learnt weights,
returns the distance of each pair, with n values.
"""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from models.autoencoder.config import PerceptualError
from models.torchscript import TorchScriptError, last_line, load_torchscript

EPS = 1e-10  # added to the squared norm of a feature vector, which may be 0
PROBE_SIDE = 64  # pixels of the images that a network is tried with


def feature_distance(one: list[Float[Tensor, "n ..."]], other: list[Float[Tensor, "n ..."]]) -> Float[Tensor, " n"]:
    """The sum over layers of the squared distance of unit feature vectors, averaged over places.

    Zhang et al. 2018, eq. 1, with weights of 1; in [0, 4] for each layer.

    Args:
        one, other: of each layer the feature maps (n c i j) of n images.
    """
    distance = torch.zeros(len(one[0]), device=one[0].device)
    for first, second in zip(one, other, strict=True):
        difference = _unit(first.float()) - _unit(second.float())
        distance = distance + difference.square().sum(1).mean((1, 2))
    return distance


def _unit(features: Float[Tensor, "n c i j"]) -> Float[Tensor, "n c i j"]:
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + EPS)


class PerceptualDistance:
    """The mean perceptual distance of the frames of clips. Its weights are constant, and not part of a checkpoint.

    It is no module, so that an engine neither partitions nor saves the weights. It computes in float32, and without
    the optimisations of TorchScript, which begin after a few calls: a training that resumes would differ by rounding.
    """

    def __init__(self, path: Path) -> None:
        self._network = load_network(path)
        self._device = torch.device("cpu")

    def __call__(
        self, pixels: Float[Tensor, "b 3 t h w"], reconstruction: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, ""]:
        """The mean over all frames; gradients reach the reconstruction."""
        if pixels.device != self._device:
            self._network, self._device = self._network.to(pixels.device), pixels.device
        frames = [rearrange(clips.float(), "b c t h w -> (b t) c h w") for clips in (pixels, reconstruction)]
        with torch.autocast(pixels.device.type, enabled=False):
            return _distances(self._network, frames[0], frames[1]).mean()


def load_network(path: Path) -> Any:  # noqa: ANN401 - torch's ScriptModule
    """The network in a TorchScript file, with constant weights, on the CPU. The code in the file is run.

    Raises:
        PerceptualError: there is no such file, or it holds no network that takes and returns what it should.
    """
    try:
        network = load_torchscript(path, torch.device("cpu"))
    except TorchScriptError as error:
        raise PerceptualError(f"{_named(path)}: {error}") from error
    _try(network, path)
    return network


def _named(path: Path) -> str:
    return f"autoencoder.loss.perceptual.network: {path}"


def _num_inputs(network: Any) -> int:  # noqa: ANN401 - torch's ScriptModule
    return len(network.forward.schema.arguments) - 1  # the first is the network itself


def _distances(network: Any, one: Tensor, other: Tensor) -> Float[Tensor, " n"]:  # noqa: ANN401 - torch's ScriptModule
    with torch.jit.optimized_execution(False):
        if _num_inputs(network) == 2:
            return network(other, one).float().reshape(len(one))
        with torch.no_grad():
            expected = list(network(one))
        return feature_distance(list(network(other)), expected)


def _try(network: Any, path: Path) -> None:  # noqa: ANN401 - torch's ScriptModule
    """Call a network once with images, and look at what it returns.

    Raises:
        PerceptualError: says what is wrong.
    """
    images = torch.linspace(-1, 1, 2 * 3 * PROBE_SIDE**2).reshape(2, 3, PROBE_SIDE, PROBE_SIDE).requires_grad_()
    told = f"{_named(path)}, given images {list(images.shape)},"
    num_inputs = _num_inputs(network)
    if num_inputs not in (1, 2):
        raise PerceptualError(
            f"{_named(path)} takes {num_inputs} inputs; it must take images and return feature maps, or take two "
            "tensors of images and return their distances"
        )
    try:
        with torch.jit.optimized_execution(False):
            result = network(images) if num_inputs == 1 else network(images, images.flip(3))
    except RuntimeError as error:  # of TorchScript, whatever went wrong in its code
        raise PerceptualError(f"{told} fails: {last_line(error)}") from error
    if num_inputs == 2:
        if not isinstance(result, Tensor) or result.numel() != len(images):
            raise PerceptualError(f"{told} returned {_described(result)}, where one distance per pair was expected")
        results = [result]
    else:
        is_list = isinstance(result, list | tuple) and len(result) > 0
        if not is_list or any(not isinstance(item, Tensor) or item.ndim != 4 or len(item) != 2 for item in result):
            raise PerceptualError(f"{told} returned {_described(result)}, where a list of maps (2 c i j) was expected")
        results = list(result)
    if any(not item.isfinite().all() for item in results):
        raise PerceptualError(f"{told} returned values that are not finite")
    if not any(item.requires_grad for item in results):
        raise PerceptualError(f"{told} returned values without gradients: trace or script it without torch.no_grad")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_described(item) for item in value[:8])}]"
    return f"a {type(value).__name__}"
