"""How likely a network holds the latents of clips, in bits, and the noises that it makes them from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from data.dataset.clip import Split
from data.dataset.index import IndexRow, read_index
from data.dataset.latents import read_latents
from data.dataset.manifest import read_manifest
from data.dataset.reader import PayloadReader
from data.errors import DatasetError, ReelflowError
from data.files.checksums import file_sha256
from data.files.jsonl import publish_jsonl
from data.files.publish import publish_bytes, publish_text
from data.records import Record
from models.flow.field import Field
from models.flow.likelihood import (
    bits_per_dimension,
    log_likelihood,
    probed_divergence,
    rademacher,
    variational_bound,
)
from models.flow.path import path_of
from models.flow.solver import invert, rk4
from models.networks.build import build_network
from models.networks.protocol import Conditions, VelocityNetwork
from models.text.caption import CaptionReader
from pipeline.encode.captions import StoredCaptions, byte_captions
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.statistics import normalize
from pipeline.run import randomness
from pipeline.run.precision import prepare_to_compute
from pipeline.run.progress import bar
from pipeline.run.weight_names import WeightsName
from pipeline.sample.model import TrainedModel, open_model

RESULT_NAME, ROWS_NAME, NOISE_NAME = "likelihood.json", "likelihood.jsonl", "noise.safetensors"
BOUND_RATIOS = (-5.0, 4.0)
"""log(a / b) at the first and the last time of the variational bound."""


class LikelihoodError(ReelflowError, ValueError):
    """The likelihood of these latents under this checkpoint is not defined."""


@dataclass(frozen=True)
class Accuracy:
    """How exactly likelihoods are computed."""

    steps: int = 20
    """Steps of the Runge-Kutta method (`rk4`), which has four network calls and backward passes in each."""
    probes: int = 1
    """Random directions by which the divergence is estimated; their mean has an error that falls with their root."""
    bound_steps: int = 100
    """Steps of the variational bound, one call each; with fewer it is looser."""


class ClipLikelihood(Record):
    """A line of likelihood.jsonl; every figure is of the normalised latents, which are continuous."""

    key: str
    bucket: str
    num_dimensions: int
    log_likelihood: float
    """In nats, by the change of density along the flow."""
    bits_per_dimension: float
    """-log2 of it for each dimension. Of continuous values it may be below 0."""
    bound_bits_per_dimension: float
    """As that, of the variational bound: an estimate of an upper bound of the true one."""
    noise_rms: float
    """Root mean square of the noise that the clip is made from; near 1 of clips that the network finds typical."""
    round_trip_rms: float
    """Root mean square of the difference between the latents and those that are sampled from that noise again."""


class Likelihoods(Record):
    """The contents of likelihood.json."""

    checkpoint: str
    fingerprint: str
    weights: WeightsName
    split: Split
    num_clips: int
    steps: int
    probes: int
    bound_steps: int
    bits_per_dimension: float
    """Mean over clips."""
    standard_error: float | None
    """Of that mean; None of a single clip."""
    bound_bits_per_dimension: float
    noise_rms: float
    round_trip_rms: float


def measure_likelihoods(
    checkpoint: Path,
    latents_dir: Path,
    output_dir: Path,
    *,
    split: Split = "validation",
    max_clips: int = 64,
    batch: int = 8,
    weights: WeightsName,
    accuracy: Accuracy,
) -> Likelihoods:
    """Measure clips under the network without guidance, and write likelihood.json, likelihood.jsonl and their noises.

    Noises are tensors (c t h w) by the key of the clip, in noise.safetensors. A clip's figures are functions of the
    checkpoint, the clip and the accuracy, up to rounding; clips are measured shape by shape.

    Args:
        batch: number of clips of one shape that are computed together, whose activations take memory.

    Raises:
        LikelihoodError: the network has no velocity at the data, or latents of another autoencoder are given.
        CheckpointError: the checkpoint cannot be used.
        DatasetError: the folder holds no latents, or none of the split.
    """
    model = open_model(checkpoint)
    if not isinstance(model, TrainedModel):
        raise LikelihoodError(f"{checkpoint} is a published pipeline; name a training's folder, such as runs/NAME/dit")
    _check(model, latents_dir)
    rows = read_index(latents_dir, split)
    if not rows:
        raise DatasetError(f"{latents_dir} has no clips of the split {split}: name the other one")
    chosen = sorted(rows[:max_clips], key=lambda row: row.bucket)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepare_to_compute(device)
    network = _network(model, weights, device)
    read = _captions(model, latents_dir)
    reader, found, noises = PayloadReader(latents_dir), [], {}
    with bar("likelihood", len(chosen), "clips") as progress, torch.no_grad():
        for clips in _batches(chosen, batch):
            x_1 = normalize(read_latents([reader.read(row) for row in clips]).float(), model.stats).to(device)
            measured, x_0 = _measure(network, model, read, clips, x_1, accuracy)
            found += measured
            noises |= {row.key: noise.cpu().contiguous() for row, noise in zip(clips, x_0, strict=True)}
            publish_jsonl(output_dir / ROWS_NAME, found)
            progress.update(len(found))
    reader.close()
    publish_bytes(output_dir / NOISE_NAME, save(noises))
    bits = torch.tensor([clip.bits_per_dimension for clip in found], dtype=torch.float64)
    result = Likelihoods(
        checkpoint=model.title,
        fingerprint=model.fingerprint,
        weights=weights,
        split=split,
        num_clips=len(found),
        steps=accuracy.steps,
        probes=accuracy.probes,
        bound_steps=accuracy.bound_steps,
        bits_per_dimension=bits.mean().item(),
        standard_error=(bits.std() / len(bits) ** 0.5).item() if len(bits) > 1 else None,
        bound_bits_per_dimension=sum(clip.bound_bits_per_dimension for clip in found) / len(found),
        noise_rms=sum(clip.noise_rms for clip in found) / len(found),
        round_trip_rms=sum(clip.round_trip_rms for clip in found) / len(found),
    )
    publish_text(output_dir / RESULT_NAME, result.model_dump_json(indent=2) + "\n")
    return result


def _check(model: TrainedModel, latents_dir: Path) -> None:
    if model.flow.tokens is not None:
        raise LikelihoodError(f"{model.folder} predicts tokens, which have no density of latents: name one of latents")
    if model.flow.matching is not None:
        raise LikelihoodError(
            f"{model.folder} was trained by distribution matching, and has no velocity to follow: name its teacher"
        )
    if model.flow.prediction != "velocity" or model.flow.path == "vp":
        raise LikelihoodError(
            f"{model.folder} predicts {model.flow.prediction} on the path {model.flow.path}, and its velocity is "
            "undefined at the data, where a likelihood starts: use a network that predicts velocities on another path"
        )
    manifest = read_manifest(latents_dir)
    if manifest.latent_stats is None:
        raise DatasetError(f"{latents_dir} holds clips, no latents; name a folder such as runs/NAME/latents")
    if file_sha256(latents_dir / AUTOENCODER_NAME) != file_sha256(model.folder / AUTOENCODER_NAME):
        raise LikelihoodError(
            f"{latents_dir} was encoded by another autoencoder than the one of {model.folder}, so its latents mean "
            "something else; name the latents of the same run"
        )
    theirs = None if manifest.text_encoder is None else manifest.text_encoder.fingerprint
    if theirs != (None if model.text_encoder is None else model.text_encoder.fingerprint):
        raise LikelihoodError(f"the captions of {latents_dir} were not encoded as {model.folder} reads them")


def _network(model: TrainedModel, weights: WeightsName, device: torch.device) -> VelocityNetwork:
    network = build_network(model.network, model.stats.num_channels, model.embedding_width)
    for name, weight in model.weights(weights):
        network.get_parameter(name).data.copy_(weight)
    return network.to(device).eval().requires_grad_(False)


def _captions(model: TrainedModel, latents_dir: Path) -> CaptionReader:
    if model.text_encoder is None:
        return byte_captions(model.network.caption_text)
    return StoredCaptions(latents_dir, model.flow.null_caption)


def _batches(rows: Sequence[IndexRow], size: int) -> Iterator[list[IndexRow]]:
    for _, run in groupby(rows, lambda row: row.bucket):
        same = list(run)
        yield from (same[at : at + size] for at in range(0, len(same), size))


def _measure(
    network: VelocityNetwork,
    model: TrainedModel,
    read: CaptionReader,
    clips: Sequence[IndexRow],
    x_1: Float[Tensor, "b c t h w"],
    accuracy: Accuracy,
) -> tuple[list[ClipLikelihood], Float[Tensor, "b c t h w"]]:
    """The figures of clips of one shape, and their noises."""
    caption = read([row.caption for row in clips]).to(x_1.device)
    conditioned = network.given(Conditions(torch.tensor([row.fps for row in clips], device=x_1.device)))
    path = path_of(model.flow)
    field = Field(lambda x, t: conditioned(x, t, caption), path)
    grid = torch.linspace(0, 1, accuracy.steps + 1, device=x_1.device)
    total = torch.zeros(len(x_1), device=x_1.device)
    for number in range(accuracy.probes):
        probe = torch.cat([_probe(row.key, number, x_1[:1]) for row in clips])
        total = total + log_likelihood(field, x_1, grid, probed_divergence(probe))
    log_density = total / accuracy.probes
    x_0 = invert(field, x_1, grid)
    again = rk4(field, x_0, grid)
    low, high = BOUND_RATIOS
    ratios = torch.linspace(low, high, accuracy.bound_steps + 1, device=x_1.device, dtype=torch.float64)
    noise = partial(_noise, [row.key for row in clips], x_1)
    bound = variational_bound(field, x_1, path.time_of_log_ratio(ratios), noise)
    size = x_1[0].numel()
    figures = (
        log_density,
        bits_per_dimension(log_density, size),
        bits_per_dimension(-bound, size),
        _rms(x_0),
        _rms(again - x_1),
    )
    names = "log_likelihood", "bits_per_dimension", "bound_bits_per_dimension", "noise_rms", "round_trip_rms"
    return [
        ClipLikelihood(
            key=row.key,
            bucket=row.bucket,
            num_dimensions=size,
            **{name: values[number].item() for name, values in zip(names, figures, strict=True)},
        )
        for number, row in enumerate(clips)
    ], x_0


def _probe(key: str, number: int, like: Float[Tensor, "1 c t h w"]) -> Float[Tensor, "1 c t h w"]:
    return rademacher(like.cpu(), randomness.generator(0, "likelihood-probe", f"{key} {number}")).to(like)


def _noise(keys: Sequence[str], like: Float[Tensor, "b c t h w"], step: int) -> Float[Tensor, "b c t h w"]:
    addresses = [f"{key} {step}" for key in keys]
    return randomness.normal(0, "likelihood-bound", addresses, tuple(like.shape[1:])).to(like)


def _rms(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    return x.flatten(1).square().mean(1).sqrt()
