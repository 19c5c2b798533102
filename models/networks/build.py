"""A network from its configuration."""

from models.networks.config import DiTConfig, NetworkConfig
from models.networks.dit import DiT
from models.networks.protocol import VelocityNetwork


def build_network(config: NetworkConfig, channels: int, embedding_width: int | None = None) -> VelocityNetwork:
    """The network of a configuration, with newly initialized weights. A new architecture is one more case.

    Args:
        channels: of the latents.
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes.
    """
    match config:
        case DiTConfig():
            return DiT(config, channels, embedding_width)
