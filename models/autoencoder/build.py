"""An autoencoder from its configuration."""

from models.autoencoder.config import AutoencoderConfig, VideoAutoencoderConfig, WanAutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.autoencoder.protocol import VideoAutoencoder
from models.autoencoder.wan import WanAutoencoder


def build_autoencoder(config: VideoAutoencoderConfig) -> VideoAutoencoder:
    """The autoencoder of a configuration, with newly initialized weights. A new architecture is one more case."""
    match config:
        case AutoencoderConfig():
            return Autoencoder(config)
        case WanAutoencoderConfig():
            return WanAutoencoder(config)
