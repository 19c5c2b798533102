"""Clips of moving shapes and an autoencoder with random weights."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import write_index
from data.dataset.manifest import ShardRecord
from data.dataset.shards import write_shard
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from testing.records import made_up_clip

SMALL_AUTOENCODER = AutoencoderConfig(latent_channels=4, width=8, deep_width=16, num_blocks=2)


def make_network(config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder with random weights in every layer; a new one has zeros in its last convolutions."""
    torch.manual_seed(0)
    network = Autoencoder(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


NETWORK = make_network(SMALL_AUTOENCODER)


def moving_shapes(num_frames: int, pixels: int, number: int = 0) -> np.ndarray:
    """The frames of scene `number`, uint8 (t h w c)."""
    return render(random_scene(0, number, combinations()), num_frames, pixels)


def write_clips(path: Path, lengths: Iterable[int], side: int) -> ShardRecord:
    """A shard of encoded clips, one for each length in frames, and its index."""
    samples = []
    for number, num_frames in enumerate(lengths):
        bucket = Bucket(num_frames=num_frames, height=side, width=side, fps=8)
        samples.append((made_up_clip(number, bucket), encode_clip(moving_shapes(num_frames, side, number), 8)))
    shard, rows = write_shard(path, samples, VIDEO_MEMBER)
    write_index(path.parent, rows)
    return shard


def write_autoencoder(path: Path, config: AutoencoderConfig) -> Autoencoder:
    """Save `make_network` with its configuration as metadata, as the encode stage reads it."""
    network = make_network(config)
    save_file(network.state_dict(), path, metadata={"config": config.model_dump_json()})
    return network
