"""Adding low-rank adapters to a network."""

from models.meta import on_meta_device
from models.networks.build import build_network
from models.networks.config import NetworkConfig
from models.networks.protocol import VelocityNetwork
from pipeline.checkpoint.adapters import LoraError, import_peft
from pipeline.checkpoint.config import LoraConfig


def add_adapters(network: VelocityNetwork, config: LoraConfig) -> None:
    """Put adapters on the layers that `targets` names and freeze all other weights.

    The product of each adapter is zero at first, so that no output changes.

    Raises:
        LoraError: peft is missing, or a target names no linear layer.
    """
    peft = import_peft()
    names = network.lora_targets()
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
        embedding_width: of a pretrained text encoder; None: captions are read as bytes or words.

    Raises:
        LoraError: peft is missing, or a target names no linear layer.
    """
    with on_meta_device():
        add_adapters(build_network(model, num_channels, embedding_width), lora)
