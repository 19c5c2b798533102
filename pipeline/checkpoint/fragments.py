"""Whether the fragments of a checkpoint are those that its record describes, from the headers of its files alone.

A checksum says that a file is as it was written, not that what was written makes sense. Everything here is compared
before memory is taken: safetensors itself makes sure that no tensor is longer than its file.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from pipeline.checkpoint.record import Checkpoint, CheckpointError, rank_file
from pipeline.run.weight_names import MASTER

MOMENTS = ("exp_avg", "exp_avg_sq")
_STARTS = TypeAdapter(dict[str, int])


def open_rank_file(checkpoint: Checkpoint, rank: int) -> Any:  # noqa: ANN401 - safetensors is untyped
    """The file of one rank, opened; only its header is read.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = checkpoint.folder / rank_file(rank)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def read_starts(file: Any, checkpoint: Checkpoint, rank: int) -> dict[str, int]:  # noqa: ANN401 - as above
    """Where each fragment of a rank's file begins in its flattened parameter, by parameter name.

    Raises:
        CheckpointError: the file does not say so.
    """
    try:
        return _STARTS.validate_python(json.loads((file.metadata() or {})["starts"]), strict=True)
    except (KeyError, ValueError, RecursionError, ValidationError) as error:
        path = checkpoint.folder / rank_file(rank)
        raise CheckpointError(f"{path} is damaged: its header does not say where each fragment starts") from error


def check_fragments(checkpoint: Checkpoint) -> None:
    """Check that the fragments of all files cover every value of every parameter exactly once.

    Raises:
        CheckpointError: names the file or the parameter.
    """
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for rank in range(checkpoint.record.world_size):
        with open_rank_file(checkpoint, rank) as file:
            for name, start, length in _fragments(file, checkpoint, rank):
                spans[name].append((start, length))
    for name, shape in checkpoint.record.parameters.items():
        end = 0
        for start, length in sorted(spans[name]):
            if start != end:
                break
            end += length
        else:
            if end == prod(shape):
                continue
        raise CheckpointError(
            f"{checkpoint.folder} is damaged: the fragments of {name[:80]} do not cover its {prod(shape)} values "
            f"exactly once (the first {end} are covered)"
        )


def _fragments(file: Any, checkpoint: Checkpoint, rank: int) -> Iterator[tuple[str, int, int]]:  # noqa: ANN401
    """Name, start and length of each fragment of a rank's file; all its tensors are checked to be as long."""
    path, kinds = checkpoint.folder / rank_file(rank), (MASTER, *MOMENTS, *checkpoint.record.averages)
    tensors = set(file.keys())
    for name, start in read_starts(file, checkpoint, rank).items():
        if name not in checkpoint.record.parameters:
            raise CheckpointError(f"{path} is damaged: it holds {name[:80]!r}, which checkpoint.json does not list")
        lengths = set()
        for kind in kinds:
            if f"{kind}/{name}" not in tensors:
                raise CheckpointError(f"{path} is damaged: it lacks the tensor {kind}/{name[:80]}")
            tensor = file.get_slice(f"{kind}/{name}")
            if len(tensor.get_shape()) != 1 or tensor.get_dtype() != "F32":
                raise CheckpointError(f"{path} is damaged: {kind}/{name[:80]} is not one row of float32 values")
            lengths.add(tensor.get_shape()[0])
        if len(lengths) > 1:
            raise CheckpointError(f"{path} is damaged: the tensors of {name[:80]} are of different lengths")
        yield name, start, lengths.pop()
