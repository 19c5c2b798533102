"""Low-rank adapters on a trained DiT (LoRA: Hu et al. 2021, eq. 3), by peft: W x + (alpha / rank) B A x.

Training needs peft; reading does not. A checkpoint holds the adapters, and the base's weights as a file beside them,
the same file in every checkpoint (a hard link): `network_weights` merges the two.
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
from pipeline.run.weight_names import Weights

BASE_NAME = "base.safetensors"
PREFIX = "network."  # where a task's loss keeps its network
DOWN, UP = "lora_A.default.weight", "lora_B.default.weight"  # as peft names an adapted layer's parameters


class LoraError(ReelflowError, ValueError):
    """Adapters cannot be made; the message names the package or the field, and the way out."""


def _peft() -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise LoraError(
            f"dit.train.lora needs peft ({error}): pip install 'reelflow[lora]', or leave dit.train.lora out to train "
            "all weights"
        ) from error


def network_shapes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """The shapes of what `network_weights` yields, in its order."""
    if "lora" not in checkpoint.record.trained:
        return {name.removeprefix(PREFIX): shape for name, shape in checkpoint.record.parameters.items()}
    with safe_open(checkpoint.folder / BASE_NAME, framework="pt") as base:
        return {name: base.get_slice(name).get_shape() for name in base.keys()}  # noqa: SIM118 - not a dictionary


def network_weights(checkpoint: Checkpoint, which: Weights = "ema") -> Iterator[tuple[str, Tensor]]:
    """The network's whole weights by its own names, one in memory at a time; adapters are merged into their base."""
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
    """The exported weights that a training starts from."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
