"""Export of a checkpoint's whole weights, without Ray or DeepSpeed.

To one safetensors file and a JSON file, or to a folder in the layout of diffusers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.files.publish import publish_text, published
from models.networks.config import read_network_config
from models.networks.wan_published import as_published, published_fields, published_tensors
from pipeline.checkpoint.adapters import network_shapes, network_weights
from pipeline.checkpoint.published import write_published
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.checkpoint.tensor_files import stream_tensors
from pipeline.run.precision import prepare_to_compute
from pipeline.run.weight_names import FIRST_AVERAGE, WeightsName

SUFFIX = ".safetensors"
_SETTINGS = TypeAdapter(dict[str, Any])


def export_weights(checkpoint: Checkpoint, path: Path, which: WeightsName = FIRST_AVERAGE) -> Path:
    """Write master or averaged weights to `path`, one parameter in memory at a time; adapters are merged.

    Returns:
        Path of the JSON file beside it: what was trained, for how many steps, and which weights these are.

    Raises:
        CheckpointError: there are no such weights, and the message lists those there are; it is damaged; or the name of
            `path` does not end in .safetensors.
    """
    if path.suffix.lower() != SUFFIX:
        raise CheckpointError(
            f"{path} is no name for exported weights, beside which a .json file is written: use {path.stem}{SUFFIX}"
        )
    record = checkpoint.record
    shapes, model = network_shapes(checkpoint), checkpoint.trained("model", _SETTINGS.validate_python)
    about = {
        "kind": record.kind,
        "weights": checkpoint.kind_of(which),
        "step": record.step,
        "cursor": record.cursor,
        "checkpoint": checkpoint.fingerprint,
        "trained": record.trained,
    }
    prepare_to_compute(torch.device("cpu"))  # adapters are merged by products
    with published(path) as temporary:
        weights = (tensor for _, tensor in network_weights(checkpoint, which))
        # "config" as in the autoencoder file beside a DiT's checkpoint
        stream_tensors(temporary, shapes, weights, {"config": json.dumps(model)})
    description = path.with_suffix(".json")
    publish_text(description, json.dumps(about, indent=1) + "\n")
    return description


def export_published(checkpoint: Checkpoint, folder: Path, which: WeightsName = FIRST_AVERAGE) -> None:
    """Write master or averaged weights as a published transformer, in the layout of diffusers; adapters are merged.

    Args:
        folder: must not exist.

    Raises:
        CheckpointError: there are no such weights, it is damaged, or networks of its architecture have no such layout.
        PublishedError: the folder exists.
    """
    record = checkpoint.record
    if record.kind != "dit":
        raise CheckpointError(f"{checkpoint.folder} holds a {record.kind}; only a dit has a published layout")
    if "tokenizer" in record.trained:
        raise CheckpointError(f"{checkpoint.folder} predicts tokens, which no published layout is for")
    checkpoint.kind_of(which)
    encoder = None
    if record.trained.get("text_encoder") is not None:
        encoder = checkpoint.trained("text_encoder", TextEncoderRecord.model_validate)
    model = read_network_config(checkpoint.trained("model", _SETTINGS.validate_python))
    channels = checkpoint.trained("latent_stats", LatentStats.model_validate).num_channels
    try:
        transformer = as_published(model, channels, None if encoder is None else encoder.width)
    except ValueError as error:
        told = f"{checkpoint.folder}: {error}; leave --layout out to write one safetensors file"
        raise CheckpointError(told) from error
    tensors = published_tensors(transformer)
    prepare_to_compute(torch.device("cpu"))  # as above
    in_order = {name: tensors[name] for name in network_shapes(checkpoint)}
    write_published(folder, published_fields(transformer), in_order, network_weights(checkpoint, which))
