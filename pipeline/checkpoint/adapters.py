"""Low-rank adapters on a trained DiT (LoRA: Hu et al. 2021, equation 3): W x + (alpha / rank) B A x.

Training needs the package peft, reading does not. A checkpoint holds the adapters, and beside them a file with the
weights of the base network, which all checkpoints share through hard links; `network_weights` merges the two.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from data.errors import ReelflowError
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.read import load_weights, stream_weights
from pipeline.checkpoint.record import Checkpoint
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
    """Shapes of the weights that `network_weights` yields, in the same order."""
    if "lora" not in checkpoint.record.trained:
        return {name.removeprefix(PREFIX): shape for name, shape in checkpoint.record.parameters.items()}
    with safe_open(checkpoint.folder / BASE_NAME, framework="pt") as base:
        return {name: base.get_slice(name).get_shape() for name in base.keys()}  # noqa: SIM118 - not a dictionary


def network_weights(checkpoint: Checkpoint, which: WeightsName = FIRST_AVERAGE) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by the network's own names, one in memory at a time, with adapters merged into them."""
    if "lora" not in checkpoint.record.trained:
        yield from ((name.removeprefix(PREFIX), weight) for name, weight in stream_weights(checkpoint, which))
        return
    config = LoraConfig(**checkpoint.record.trained["lora"])
    adapters = load_weights(checkpoint, which)
    with safe_open(checkpoint.folder / BASE_NAME, framework="pt") as base:
        for name in network_shapes(checkpoint):
            weight, layer = base.get_tensor(name), f"{PREFIX}{name.removesuffix('weight')}"
            if (down := adapters.get(layer + DOWN)) is not None:
                weight += config.alpha / config.rank * adapters[layer + UP] @ down
            yield name, weight


def read_base(path: Path) -> dict[str, Tensor]:
    """Read the weights of the base network, by name."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
