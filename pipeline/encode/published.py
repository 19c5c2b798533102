"""Published autoencoders: opened and checked, and loaded or written in the form that the stages read."""

import json
from pathlib import Path

from data.dataset.compression import Compression
from data.dataset.manifest import LatentStats
from data.files.publish import published
from models.autoencoder.build import build_autoencoder
from models.autoencoder.protocol import VideoAutoencoder
from models.autoencoder.wan_published import published_names, read_published_config
from models.meta import on_meta_device
from models.published import Correspondence, PublishedTensor
from pipeline.checkpoint.published import PublishedFolder, open_component
from pipeline.checkpoint.tensor_files import stream_tensors
from pipeline.run.fingerprints import stored

COMPONENT = "vae"  # name of its folder in a pipeline


def open_autoencoder(folder: Path) -> PublishedFolder:
    """A published autoencoder, from its own folder or that of its pipeline, checked from the headers of its files.

    Raises:
        PublishedError: it is missing, damaged or not supported.
    """
    found = open_component(folder, COMPONENT)
    found.check_tensors(_tensors(found))
    return found


def autoencoder_stats(folder: PublishedFolder) -> tuple[LatentStats, Compression]:
    """The published statistics of the latents, and the strides."""
    config = folder.described(read_published_config)
    return LatentStats(mean=list(config.latent_mean), std=list(config.latent_std)), config.compression


def load_published_autoencoder(folder: PublishedFolder) -> VideoAutoencoder:
    """The autoencoder in evaluation mode, without gradients, on the CPU."""
    with on_meta_device():
        network = build_autoencoder(folder.described(read_published_config))
    shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    network = network.to_empty(device="cpu").eval().requires_grad_(False)
    for name, weight in folder.weights(_tensors(folder), shapes):
        network.get_parameter(name).copy_(weight)
    return network


def export_published_autoencoder(folder: PublishedFolder, path: Path) -> None:
    """Write configuration and weights as `export_autoencoder` does, one weight in memory at a time."""
    tensors = _tensors(folder)
    shapes = {name: list(parts[0].shape) for name, parts in tensors.items()}
    metadata = {"config": json.dumps(stored(folder.described(read_published_config)))}
    with published(path) as temporary:
        stream_tensors(temporary, shapes, (weight for _, weight in folder.weights(tensors, shapes)), metadata)


def _tensors(folder: PublishedFolder) -> Correspondence:
    """The published tensor that each weight is."""
    config = folder.described(read_published_config)
    with on_meta_device():
        shapes = {name: tuple(weight.shape) for name, weight in build_autoencoder(config).state_dict().items()}
    return {ours: (PublishedTensor(theirs, shapes[ours]),) for ours, theirs in published_names(config).items()}
