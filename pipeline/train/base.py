"""Checks before a training starts from the weights of another one."""

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from data.dataset.manifest import LatentStats, TextEncoderRecord
from models.flow.spec import FlowSpec
from models.networks.config import NetworkConfig
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.run.fingerprints import stored

_SETTINGS = TypeAdapter(dict[str, Any])


def check_base(
    base: Checkpoint, model: NetworkConfig, flow: FlowSpec, num_channels: int, text_encoder: TextEncoderRecord | None
) -> None:
    """Refuse to start from the weights of a different network.

    Raises:
        CheckpointError: names every field that differs, or what the checkpoint lacks.
    """
    record = base.record
    if record.kind != "dit":
        raise CheckpointError(
            f"dit.train.start_from: {base.folder} holds a {record.kind}; name the checkpoint of a dit"
        )
    there = {
        "model": base.trained("model", _SETTINGS.validate_python),
        "flow": base.trained("flow", FlowSpec.model_validate).model_dump(include={"path", "prediction"}),
        "latent_channels": base.trained("latent_stats", LatentStats.model_validate).num_channels,
        "text_encoder": (record.trained.get("text_encoder") or {}).get("fingerprint"),
    }
    here = {
        "model": stored(model),
        "flow": {"path": flow.path, "prediction": flow.prediction},
        "latent_channels": num_channels,
        "text_encoder": None if text_encoder is None else text_encoder.fingerprint,
    }
    if differences := list(_differences(there, here, "dit")):
        raise CheckpointError(
            f"dit.train.start_from: {base.folder} is another network: {'; '.join(differences)}. Set these as they are "
            "there, or leave start_from out"
        )


def _differences(there: dict[str, Any], here: dict[str, Any], place: str) -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        before, now = there.get(name), here.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{place}.{name}")
        elif before != now:
            yield f"{place}.{name} is {now} but {before} there"
