"""A network from its configuration."""

from models.networks.config import DiTConfig, NetworkConfig, UNetConfig, WanConfig
from models.networks.dit import DiT
from models.networks.protocol import VelocityNetwork
from models.networks.token_network import EMBEDDING_CHANNELS, TokenNetwork
from models.networks.unet import UNet
from models.networks.wan import Wan
from models.tokens.config import TokenizerConfig


def build_network(config: NetworkConfig, channels: int, embedding_width: int | None = None) -> VelocityNetwork:
    """The network of a configuration, with newly initialized weights. A new architecture is one more case.

    Args:
        channels: of the latents.
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes or words.

    Raises:
        ValueError: the network cannot read captions as bytes.
    """
    match config:
        case DiTConfig():
            return DiT(config, channels, embedding_width)
        case UNetConfig():
            return UNet(config, channels, embedding_width)
        case WanConfig():
            if embedding_width is None:
                raise ValueError("a network of architecture wan reads captions as embeddings: set encode.text.folder")
            return Wan(config, channels, embedding_width)


def build_token_network(
    config: NetworkConfig, tokens: TokenizerConfig, embedding_width: int | None = None
) -> TokenNetwork:
    """The network of a configuration as one that predicts tokens, with newly initialized weights.

    Raises:
        ValueError: as `build_network`.
    """
    return TokenNetwork(build_network(config, EMBEDDING_CHANNELS, embedding_width), EMBEDDING_CHANNELS, tokens)
