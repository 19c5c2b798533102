"""Whole weights out of a sharded checkpoint: one safetensors file and its JSON, with neither Ray nor DeepSpeed."""

import json
from pathlib import Path

from data.files.publish import publish_text, published
from pipeline.checkpoint.adapters import network_shapes, network_weights
from pipeline.checkpoint.record import Checkpoint
from pipeline.checkpoint.tensor_files import stream_tensors
from pipeline.run.weight_names import FIRST, Weights


def export_weights(checkpoint: Checkpoint, path: Path, which: Weights = FIRST) -> Path:
    """Write averaged or raw weights to `path`, one parameter in memory at a time; adapters are merged.

    Returns:
        The JSON beside it: what was trained, for how many steps, and which weights these are.

    Raises:
        CheckpointError: there are no such weights; names those there are.
    """
    record = checkpoint.record
    shapes = network_shapes(checkpoint)
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
        # "config" as in the autoencoder beside a DiT's checkpoint
        stream_tensors(temporary, shapes, weights, {"config": json.dumps(record.trained["model"])})
    description = path.with_suffix(".json")
    publish_text(description, json.dumps(about, indent=1) + "\n")
    return description
