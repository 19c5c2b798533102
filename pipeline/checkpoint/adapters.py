"""Low-rank adapters on a trained DiT (LoRA: Hu et al. 2021, equation 3): W x + (alpha / rank) B A x.

Training needs the package peft, reading does not. A checkpoint holds the adapters, and beside them a file with the
weights of the base network, which all checkpoints share through hard links; `network_weights` merges the two.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data.errors import ReelflowError
from models.meta import on_meta_device
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.read import load_weights, stream_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.run.weight_names import FIRST_AVERAGE, WeightsName

BASE_NAME = "base.safetensors"
PREFIX = "network."  # of the parameters of the network in a task's loss module
DOWN, UP = "lora_A.default.weight", "lora_B.default.weight"  # names that peft gives to an adapter's parameters A and B


class LoraError(ReelflowError, ValueError):
    """Adapters cannot be added; the message names the package or the field, and the way out."""


def import_peft() -> Any:  # noqa: ANN401 - an optional package
    """The package peft.

    Raises:
        LoraError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise LoraError(
            f"dit.train.lora needs peft ({error}): pip install 'reelflow[lora]', or leave dit.train.lora out to train "
            "all weights"
        ) from error


def network_shapes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Shapes of the weights that `network_weights` yields, in the same order.

    Raises:
        CheckpointError: the base of its adapters is missing, damaged or not of 32-bit numbers.
    """
    if "lora" not in checkpoint.record.trained:
        parameters = checkpoint.record.parameters  # a discriminator that was trained too is no part of the network
        return {name.removeprefix(PREFIX): shape for name, shape in parameters.items() if name.startswith(PREFIX)}
    with _open_base(checkpoint.folder / BASE_NAME) as base:
        return _stored_shapes(base, checkpoint.folder / BASE_NAME)


def check_network(checkpoint: Checkpoint, build: Callable[[], nn.Module]) -> None:
    """Check that a checkpoint holds the weights of the network that it describes, before memory is taken for them.

    Args:
        build: makes the network.

    Raises:
        CheckpointError: names the first weight that differs.
    """
    with on_meta_device():
        network = build()
    _check_shapes(checkpoint.folder, network_shapes(checkpoint), network)


def _check_shapes(path: Path, held: Mapping[str, list[int]], network: nn.Module) -> None:
    """Check that a file or a checkpoint holds the weights of a network, from their shapes.

    Raises:
        CheckpointError: names the first weight that differs.
    """
    expected = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    for name in sorted(held.keys() | expected.keys()):
        if held.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} is damaged: {name[:80]} is {str(held.get(name, 'absent'))[:80]}, but the network that it "
                f"describes has {str(expected.get(name, 'none of that name'))[:80]}"
            )


def _open_base(path: Path) -> Any:  # noqa: ANN401 - safetensors is untyped
    """The file with the weights of the base network, opened.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _stored_shapes(base: Any, path: Path) -> dict[str, list[int]]:  # noqa: ANN401 - safetensors is untyped
    """The shapes of the weights in an opened file.

    Raises:
        CheckpointError: they are not of 32-bit numbers.
    """
    shapes = {}
    for name in base.keys():  # noqa: SIM118 - not a dictionary
        weight = base.get_slice(name)
        if weight.get_dtype() != "F32":
            raise CheckpointError(
                f"{path} is damaged: {name[:80]} is stored as {weight.get_dtype()}, not as F32; restore the file"
            )
        shapes[name] = weight.get_shape()
    return shapes


def _check_pairs(checkpoint: Checkpoint, adapters: Collection[str], weights: Collection[str]) -> None:
    """Check that the learnt parameters are adapters, each of two parts and of a weight that there is.

    Args:
        adapters: names of what was learnt.
        weights: names of the weights of the base.

    Raises:
        CheckpointError: names the first that is not, or says that there are none.
    """
    layers = [f"{PREFIX}{name.removesuffix('weight')}" for name in weights]
    pairs = [(layer + DOWN, layer + UP) for layer in layers if layer + DOWN in adapters or layer + UP in adapters]
    known = {name for pair in pairs for name in pair}
    problem = None if pairs else "it holds no adapters"
    if unknown := sorted(set(adapters) - known):
        problem = f"{unknown[0][:120]} belongs to no layer of {BASE_NAME}"
    elif missing := sorted(known - set(adapters)):
        problem = f"{missing[0][:120]} is missing"
    if problem:
        raise CheckpointError(f"{checkpoint.folder} is damaged: {problem}; restore it, or use an older checkpoint")


def _is_product(weight: Tensor, up: Tensor, down: Tensor) -> bool:
    """Whether `up @ down` has the shape of the weight."""
    matrices = up.ndim == down.ndim == weight.ndim == 2
    return matrices and up.shape[1] == len(down) and (len(up), down.shape[1]) == weight.shape


def network_weights(checkpoint: Checkpoint, which: WeightsName = FIRST_AVERAGE) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by the network's own names, one in memory at a time, with adapters merged into them.

    Raises:
        CheckpointError: its files are damaged; its adapters do not fit the base, or give weights that are not finite.
    """
    if "lora" not in checkpoint.record.trained:
        yield from ((name.removeprefix(PREFIX), weight) for name, weight in stream_weights(checkpoint, which, PREFIX))
        return
    config = checkpoint.trained("lora", LoraConfig.model_validate)
    adapters, shapes = load_weights(checkpoint, which), network_shapes(checkpoint)
    _check_pairs(checkpoint, adapters.keys(), shapes.keys())
    with _open_base(checkpoint.folder / BASE_NAME) as base:
        for name in shapes:
            weight, layer = base.get_tensor(name), f"{PREFIX}{name.removesuffix('weight')}"
            if (down := adapters.get(layer + DOWN)) is not None:
                up = adapters[layer + UP]
                if not _is_product(weight, up, down):
                    raise CheckpointError(f"{checkpoint.folder} is damaged: its adapter of {name[:80]} does not fit it")
                weight += config.alpha / config.rank * up @ down
                if not weight.isfinite().all():
                    raise CheckpointError(
                        f"{checkpoint.folder}: {name[:80]} with its adapter is not finite (alpha {config.alpha:g}, "
                        f"rank {config.rank}); train with a smaller dit.train.lora.alpha, or use an older checkpoint"
                    )
            yield name, weight


def base_weights(path: Path, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of a network in a file, in the order of its layers.

    They lie in the mapped file: what is never read takes no memory, and what is can be dropped from memory again.

    Raises:
        CheckpointError: the file is damaged, or of another network.
    """
    with _open_base(path) as base:
        _check_shapes(path, _stored_shapes(base, path), network)
        for name in network.state_dict():
            yield name, base.get_tensor(name)
