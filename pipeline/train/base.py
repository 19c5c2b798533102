"""The weights that a training starts from, of a checkpoint or a published transformer, and checks of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.files.publish import published
from models.flow.spec import FlowSpec
from models.networks.config import NetworkConfig
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.published import PublishedFolder, is_published
from pipeline.checkpoint.published_networks import open_transformer, transformer_shapes, transformer_weights
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.checkpoint.tensor_files import stream_tensors
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.run.fingerprints import stored

_SETTINGS = TypeAdapter(dict[str, Any])


@dataclass(frozen=True)
class Base:
    """A trained network in a folder."""

    folder: Path
    fingerprint: str
    settings: dict[str, Any]
    """Of the network, the flow, the number of latent channels and the text encoder, as `_settings` gives them."""
    export: Callable[[Path], object]
    """Writes its weights to one safetensors file, by the network's own names."""
    autoencoder_sha256: str | None
    """Of the file with the autoencoder that its latents are of; None: it is not known."""


def open_base(folder: Path) -> Base:
    """The network of a checkpoint, a folder of checkpoints, a published transformer or a published pipeline.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of an autoencoder.
        PublishedError: the published folder is damaged or not supported.
    """
    return _published_base(folder) if is_published(folder) else _trained_base(open_checkpoint(folder))


def _trained_base(checkpoint: Checkpoint) -> Base:
    record = checkpoint.record
    if record.kind != "dit":
        raise CheckpointError(
            f"dit.train.start_from: {checkpoint.folder} holds a {record.kind}; name the checkpoint of a dit"
        )
    encoder = record.trained.get("text_encoder") or {}
    flow = checkpoint.trained("flow", FlowSpec.model_validate)
    if flow.tokens is not None or flow.matching is not None:
        what = "predicts tokens" if flow.matching is None else "was trained by distribution matching"
        raise CheckpointError(
            f"dit.train.start_from: {checkpoint.folder} {what}, which no training starts from: leave it out"
        )
    return Base(
        folder=checkpoint.folder,
        fingerprint=checkpoint.fingerprint,
        settings=_settings(
            checkpoint.trained("model", _SETTINGS.validate_python),
            flow,
            checkpoint.trained("latent_stats", LatentStats.model_validate).num_channels,
            {"text_encoder": encoder.get("fingerprint")},
        ),
        export=partial(export_weights, checkpoint),
        autoencoder_sha256=checkpoint.file(AUTOENCODER_NAME).sha256,
    )


def _published_base(folder: Path) -> Base:
    found, described = open_transformer(folder)
    shapes = transformer_shapes(described)

    def export(path: Path) -> None:
        with published(path) as temporary:
            weights = (weight for _, weight in transformer_weights(found, described))
            stream_tensors(temporary, shapes, weights, {})

    return Base(
        folder=found.folder,
        fingerprint=_fingerprint(found),
        settings=_settings(
            stored(described.config), FlowSpec(), described.channels, {"embedding_width": described.embedding_width}
        ),
        export=export,
        autoencoder_sha256=None,
    )


def _fingerprint(folder: PublishedFolder) -> str:
    return f"published-{folder.fingerprint()}"


def _settings(model: dict[str, Any], flow: FlowSpec, num_channels: int, encoder: dict[str, Any]) -> dict[str, Any]:
    """What has to be equal, by the names of the configuration where it has them."""
    return {
        "model": model,
        "flow": flow.model_dump(include={"path", "sigma_min", "vp_betas", "power", "prediction"}),
        "latent_channels": num_channels,
        **encoder,
    }


def check_base(
    base: Base, model: NetworkConfig, flow: FlowSpec, num_channels: int, text_encoder: TextEncoderRecord | None
) -> None:
    """Refuse to start from the weights of a different network.

    Raises:
        CheckpointError: names every field that differs.
    """
    encoder = {
        "text_encoder": None if text_encoder is None else text_encoder.fingerprint,
        "embedding_width": None if text_encoder is None else text_encoder.width,
    }
    compared = {name: value for name, value in encoder.items() if name in base.settings}
    here = _settings(stored(model), flow, num_channels, compared)
    if differences := list(_differences(base.settings, here, "dit")):
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
