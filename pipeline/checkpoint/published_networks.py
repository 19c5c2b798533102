"""Published transformers: opened and checked, read as weights of ours, and written from a checkpoint."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from models.meta import on_meta_device
from models.networks.build import build_network
from models.networks.wan_published import PublishedTransformer, published_tensors, read_transformer, unused_tensors
from pipeline.checkpoint.published import PublishedFolder, open_component

COMPONENT = "transformer"  # name of its folder in a pipeline


def open_transformer(folder: Path) -> tuple[PublishedFolder, PublishedTransformer]:
    """A published transformer, from its own folder or that of its pipeline, checked from the headers of its files.

    Raises:
        PublishedError: it is missing, damaged or not supported.
    """
    found = open_component(folder, COMPONENT)
    return found, check_transformer(found)


def check_transformer(folder: PublishedFolder) -> PublishedTransformer:
    """What config.json describes, once the files are known to hold its tensors and no others.

    Raises:
        PublishedError: names the field or the tensor.
    """
    described = folder.described(read_transformer)
    folder.check_tensors(published_tensors(described), unused_tensors(described))
    return described


def transformer_shapes(described: PublishedTransformer) -> dict[str, list[int]]:
    """Shapes of our weights, in the order in which `transformer_weights` yields them."""
    with on_meta_device():
        network = build_network(described.config, described.channels, described.embedding_width)
    return {name: list(weight.shape) for name, weight in network.state_dict().items()}


def transformer_weights(folder: PublishedFolder, described: PublishedTransformer) -> Iterator[tuple[str, Tensor]]:
    """Our weights, float32, one in memory at a time."""
    return folder.weights(published_tensors(described), transformer_shapes(described))
