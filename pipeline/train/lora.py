"""Adding low-rank adapters to a network."""

import torch
from torch import nn

from models.networks.build import build_network
from models.networks.config import NetworkConfig
from pipeline.checkpoint.adapters import LoraError, _peft
from pipeline.checkpoint.config import LoraConfig


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


def check_adapters(model: NetworkConfig, lora: LoraConfig, num_channels: int, embedding_width: int | None) -> None:
    """Try the adapters on a network without weights, before any worker starts.

    Args:
        num_channels: of the latents.
        embedding_width: of a pretrained text encoder; None: captions are read as bytes.

    Raises:
        LoraError: peft is missing, or a target names no linear layer.
    """
    with torch.device("meta"):
        add_adapters(build_network(model, num_channels, embedding_width), lora)
