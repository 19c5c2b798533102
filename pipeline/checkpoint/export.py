"""Export of a checkpoint's whole weights to one safetensors file and a JSON file, without Ray or DeepSpeed."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.files.publish import publish_text, published
from pipeline.checkpoint.adapters import network_shapes, network_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.checkpoint.tensor_files import stream_tensors
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
    with published(path) as temporary:
        weights = (tensor for _, tensor in network_weights(checkpoint, which))
        # "config" as in the autoencoder file beside a DiT's checkpoint
        stream_tensors(temporary, shapes, weights, {"config": json.dumps(model)})
    description = path.with_suffix(".json")
    publish_text(description, json.dumps(about, indent=1) + "\n")
    return description
