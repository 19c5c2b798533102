"""Adding low-rank adapters to a network."""

from torch import nn

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
