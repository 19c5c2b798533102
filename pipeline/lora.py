"""Low-rank adapters on a trained DiT (LoRA: Hu et al. 2021, eq. 3), by peft: W x + (alpha / rank) B A x.

Training needs peft; reading does not. A checkpoint holds the adapters, and the base's weights as a file beside them,
the same file in every checkpoint (a hard link): `network_weights` merges the two.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from torch import Tensor, nn

from pipeline.checkpoint import Checkpoint, Weights, load_weights, stream_weights

BASE_NAME = "base.safetensors"
PREFIX = "network."  # where a task's loss keeps its network
DOWN, UP = "lora_A.default.weight", "lora_B.default.weight"  # as peft names an adapted layer's parameters


class LoraError(ValueError):
    """Adapters cannot be made; the message names the package or the field, and the way out."""


class LoraConfig(BaseModel):
    """Which layers get adapters, and how large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)  # the adapter's output is scaled by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of the adapter's input
    # Linear layers whose names end so, of the DiT and its caption encoder; "blocks.0.qkv" names one.
    targets: tuple[str, ...] = Field(
        default=("qkv", "out", "cross_query", "cross_key_value", "cross_out", "up", "down"), min_length=1
    )


def _peft() -> Any:  # noqa: ANN401 - an optional package
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise LoraError(
            f"dit.train.lora needs peft ({error}): pip install 'reelflow[lora]', or leave dit.train.lora out to train "
            "all weights"
        ) from error


def add_adapters(network: nn.Module, config: LoraConfig) -> None:
    """Put adapters on the named layers and freeze everything else. They begin at zero: no output changes.

    Raises:
        LoraError: peft is missing, or a target names no linear layer.
    """
    peft = _peft()
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise LoraError(f"dit.train.lora.targets: {target!r} names no linear layer; there are {known}")
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
        ),
        network,
    )


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
