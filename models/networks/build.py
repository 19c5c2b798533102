"""A network from its configuration."""

from models.networks.config import NetworkConfig
from models.networks.dit import DiT


def build_network(config: NetworkConfig, channels: int, embedding_width: int | None = None) -> DiT:
    """The network of a configuration, with new weights.

    Args:
        channels: of the latents.
        embedding_width: of a pretrained text encoder; None: captions are read as bytes.
    """
    return DiT(config, channels, embedding_width)
