"""The trained autoencoder as one file, and the conversion between video frames and its input."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.files.publish import published
from data.records import Frames
from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import VideoAutoencoderConfig, read_autoencoder_config
from models.autoencoder.protocol import VideoAutoencoder
from models.meta import on_meta_device
from pipeline.checkpoint.adapters import network_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError, mistakes

AUTOENCODER_NAME = "autoencoder.safetensors"


def export_autoencoder(checkpoint: Checkpoint, path: Path) -> None:
    """Write the averaged weights and the configuration of an autoencoder to one safetensors file.

    A discriminator that was trained with it is left out.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint.trained("model", read_autoencoder_config)
    weights = dict(network_weights(checkpoint))
    with published(path) as temporary:
        save_file(weights, temporary, metadata={"config": json.dumps(checkpoint.record.trained["model"])})


def to_pixels(frames: Frames) -> Float[Tensor, "3 t h w"]:
    """Convert uint8 frames (t h w c) to float (c t h w) in [-1, 1]."""
    return rearrange(torch.from_numpy(np.require(frames, requirements="W")).float() / 127.5 - 1, "t h w c -> c t h w")


def to_frames(pixels: Float[Tensor, "3 t h w"]) -> Frames:
    """The inverse of `to_pixels`; values are clamped to [-1, 1] and rounded."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "c t h w -> t h w c").cpu().numpy()


def read_config(path: Path) -> VideoAutoencoderConfig:
    """The configuration in a file that `export_autoencoder` wrote; of the file, only the header is read.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with damage_named(path, "autoencoder"), safe_open(path, framework="pt") as file:
        return TypeAdapter(VideoAutoencoderConfig).validate_json((file.metadata() or {})["config"])


@contextmanager
def damage_named(path: Path, what: str) -> Iterator[None]:
    """While the header of an exported file is read: errors of the file become a `CheckpointError` that names it.

    Args:
        what: the file holds, for the message.
    """
    try:
        yield
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged: its header does not describe the {what}") from error
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {mistakes(error)}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_autoencoder(path: Path) -> VideoAutoencoder:
    """Load a file that `export_autoencoder` wrote, in evaluation mode, without gradients, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, or holds another network than it says.
    """
    config = read_config(path)
    with on_meta_device():  # no memory is taken before the shapes are known to be those in the file
        expected = {name: list(weight.shape) for name, weight in build_autoencoder(config).state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            if {name: file.get_slice(name).get_shape() for name in file.keys()} != expected:  # noqa: SIM118 - no dict
                raise CheckpointError(f"{path} is damaged: its weights are not those of the autoencoder it describes")
            network = build_autoencoder(config)
            network.load_state_dict({name: file.get_tensor(name) for name in expected})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return network.eval().requires_grad_(False)
