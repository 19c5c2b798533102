"""Clip shards become latent shards, with the statistics of each latent channel.

One actor per worker holds the autoencoder, and the text encoder if there is one. Each call turns one clip shard into
one latent shard and commits it, so the next start encodes only the shards that are missing.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import AliasChoices, Field
from safetensors.torch import load, save
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER, ClipRecord
from data.dataset.contents import pixels_of_shards
from data.dataset.index import write_index
from data.dataset.latents import LATENT_TENSOR
from data.dataset.manifest import (
    MANIFEST_NAME,
    BucketCounts,
    LatentStats,
    Manifest,
    ShardRecord,
    content_fingerprint,
    read_manifest,
)
from data.dataset.rows import IndexRow
from data.dataset.shards import read_shard, write_shard
from data.errors import DatasetError
from data.files.checksums import file_sha256
from data.files.publish import publish_text
from models.autoencoder.config import VideoAutoencoderConfig, WanAutoencoderConfig
from models.text.pretrained import PretrainedTextEncoder, check_text_encoder, text_encoder_fingerprint
from pipeline.distributed.actor_pool import results_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.captions import store_null_caption, text_tensors
from pipeline.encode.chunks import clips_per_call, encode_clips, frames_per_call
from pipeline.encode.codec import load_autoencoder, read_config
from pipeline.encode.config import EncodeConfig
from pipeline.run.commits import Commit, commit_path, publish_commit, read_commit, remove_commit, remove_other_shards
from pipeline.run.fingerprints import fingerprint, output_settings
from pipeline.run.precision import autocast, prepare_to_compute, warn_of_slow_precision
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, RunFiles

logger = logging.getLogger(__name__)


class EncodedShard(Commit):
    """The commit of a latent shard, made from the clip shard's bytes, the autoencoder's weights and the settings.

    Holds the sums that the statistics of the latents are computed from.
    """

    count: int  # latent values per channel, of clips of the training split
    total: list[float]  # their sum, per channel
    total_squares: list[float]  # the sum of their squares, per channel
    num_truncated_captions: int = Field(
        default=0,
        validation_alias=AliasChoices("num_truncated_captions", "num_cut_captions"),
        serialization_alias="num_cut_captions",
    )  # captions with more than the text encoder's max_tokens
    latents_from: str | None = None  # fingerprint of what the latents alone depend on; None: an older version


@dataclass(frozen=True)
class ShardInputs:
    """What a latent shard is made from."""

    whole: str
    """Fingerprint of everything that the shard depends on."""
    latents: str
    """Fingerprint of what its latents depend on: not of captions, nor of the text encoder."""


@dataclass(frozen=True)
class ShardTask:
    """A clip shard to encode, and where its latents belong."""

    source: Path
    shard: ShardRecord
    target: Path
    inputs: ShardInputs
    earlier: EncodedShard | None = None
    """The commit of `target` as it is, if it holds the same latents, with other captions or for another encoder."""


class Encoder:
    """An actor that holds the autoencoder and the text encoder, and encodes one shard per call."""

    def __init__(
        self, autoencoder_path: Path, config: EncodeConfig, num_threads: int, files: RunFiles = SHARED
    ) -> None:
        self._files = files
        files.fetch(autoencoder_path)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prepare_to_compute(self._device, num_threads)
        self._network = load_autoencoder(autoencoder_path).to(self._device)
        self._config = config
        text = config.text
        self._text = None if text is None else PretrainedTextEncoder(text.folder, text.max_tokens, self._device)

    def encode(self, task: ShardTask) -> int:
        """Encode a shard, write it and commit it; returns its number of clips."""
        channels = self._network.config.latent_channels
        self._files.fetch(task.source, *(() if task.earlier is None else (task.target,)))
        count, total, squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
        clips = list(read_shard(task.source, VIDEO_MEMBER, task.shard))
        known = _earlier_latents(task)
        payloads: dict[str, bytes] = {}
        for batch in same_shape_batches(clips, self._config, self._network.config):
            means = self._means(batch) if known is None else [known[record.key] for record, _ in batch]
            texts = self._texts([record.caption for record, _ in batch])
            for (record, _), mean, text in zip(batch, means, texts, strict=True):
                if not mean.isfinite().all():
                    raise DatasetError(
                        f"{task.source}: the latent of clip {record.key} is not finite; train the autoencoder again, "
                        "or set encode.precision to fp32"
                    )
                payloads[record.key] = save({LATENT_TENSOR: mean.contiguous(), **text})
                if record.split == "train":
                    values = mean.double().flatten(1)
                    count += values.shape[1]
                    total += values.sum(1)
                    squares += values.square().sum(1)
        # Nothing that reads latents reads measures: without them, another filter leaves the latents the same bytes.
        samples = [(record.model_copy(update={"measures": None}), payloads[record.key]) for record, _ in clips]
        written, rows = write_shard(task.target, samples, LATENT_MEMBER, partial(remove_commit, task.target))
        commit = EncodedShard(
            input_fingerprint=task.inputs.whole,
            latents_from=task.inputs.latents,
            shard=written,
            rows=rows,
            count=count,
            total=total.tolist(),
            total_squares=squares.tolist(),
            num_truncated_captions=(
                0 if self._text is None else self._text.num_truncated([record.caption for record, _ in clips])
            ),
        )
        publish_commit(task.target, commit)
        self._files.publish(task.target, record=commit_path(task.target))
        return len(samples)

    @torch.inference_mode()
    def _means(self, batch: list[tuple[ClipRecord, bytes]]) -> Iterable[Tensor]:
        bucket, contents = batch[0][0].bucket, [content for _, content in batch]
        with autocast(self._config.precision, self._device):
            return encode_clips(self._network, contents, bucket, self._config.chunk_frames, self._config.tile)

    def _texts(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """The tensors to store for each caption; none without a text encoder."""
        return [{} for _ in captions] if self._text is None else text_tensors(self._text(captions))


def _earlier_latents(task: ShardTask) -> dict[str, Tensor] | None:
    """The latents of an earlier shard by key; None where there is none, or it is damaged and made again."""
    if task.earlier is None:
        return None
    try:
        earlier = read_shard(task.target, LATENT_MEMBER, task.earlier.shard)
        return {record.key: load(payload)[LATENT_TENSOR] for record, payload in earlier}
    except DatasetError as error:
        logger.warning("%s; it is encoded again", error)
        return None


def same_shape_batches(
    clips: list[tuple[ClipRecord, bytes]], config: EncodeConfig, autoencoder: VideoAutoencoderConfig
) -> Iterator[list[tuple[ClipRecord, bytes]]]:
    """The clips of each call of the autoencoder: of one bucket, in the order of the shard.

    A call has at most `config.batch` clips and, unless one clip alone is longer, at most `config.chunk_frames` frames.
    """
    buckets = {record.bucket: None for record, _ in clips}  # each once, in the order of their first clips
    for bucket in buckets:
        same = [clip for clip in clips if clip[0].bucket == bucket]
        most_frames = frames_per_call(autoencoder, bucket.height, bucket.width, config.chunk_frames, config.tile)
        size = min(config.batch, clips_per_call(bucket.num_frames, most_frames))
        yield from (same[at : at + size] for at in range(0, len(same), size))


def encoding_settings(config: EncodeConfig, buckets: Iterable[Bucket]) -> dict[str, Any]:
    """The settings that the latents of clips of these shapes depend on.

    The rounding of kernels depends on the shapes of their inputs, so `chunk_frames` is included where it makes calls
    smaller. A text encoder is identified by its content, not by its path.

    Raises:
        TextEncoderError: there is no text encoder in `config.text.folder`.
    """
    is_bound = any(config.batch * bucket.num_frames > config.chunk_frames for bucket in buckets)
    settings = output_settings(config)
    if not is_bound:
        del settings["chunk_frames"]
    if config.text is not None:
        check_text_encoder(config.text.folder)
        settings["text"] = [text_encoder_fingerprint(config.text.folder), config.text.max_tokens]
    return settings


def expected_shards(clips_dir: Path, autoencoder_path: Path, config: EncodeConfig) -> dict[str, ShardInputs]:
    """What the latents of each clip shard are made from, by the name of the shard, in the shards' order.

    Raises:
        TextEncoderError: there is no text encoder in `config.text.folder`.
    """
    clips, pixels = read_manifest(clips_dir), pixels_of_shards(clips_dir)
    weights = file_sha256(autoencoder_path)
    settings = encoding_settings(config, (record.bucket for record in clips.buckets))
    of_latents = {name: value for name, value in settings.items() if name != "text"}
    return {
        shard.name: ShardInputs(
            whole=fingerprint([shard.sha256, weights, settings]),
            latents=fingerprint([pixels.get(shard.name), weights, of_latents]),
        )
        for shard in clips.shards
    }


@dataclass(frozen=True)
class EncodePlan:
    """Which latent shards of a folder can be used."""

    standing: frozenset[str]
    """Names of the shards that stay as they are."""
    earlier: dict[str, EncodedShard]
    """Shards whose latents stay, and whose captions or embeddings do not."""
    num_shards: int

    def __str__(self) -> str:
        text = f"{len(self.standing)} of {self.num_shards} shards stay as they are"
        if self.earlier:
            text += f", {len(self.earlier)} keep their latents and get other captions"
        return text


def plan_encoding(expected: dict[str, ShardInputs], output_dir: Path) -> EncodePlan:
    """Compare the latent shards of a folder with what they should be made from."""
    standing, earlier = set[str](), dict[str, EncodedShard]()
    for name, inputs in expected.items():
        commit = read_commit(EncodedShard, output_dir / name)
        if commit is None or not (output_dir / name).is_file():
            continue
        if commit.input_fingerprint == inputs.whole:
            standing.add(name)
        elif commit.latents_from == inputs.latents:
            earlier[name] = commit
    return EncodePlan(frozenset(standing), earlier, len(expected))


def _commits(expected: dict[str, ShardInputs], output_dir: Path) -> Iterator[EncodedShard]:
    """The commits of those shards that are as they should be, read one at a time."""
    for name, inputs in expected.items():
        commit = read_commit(EncodedShard, output_dir / name)
        if commit is not None and commit.input_fingerprint == inputs.whole and (output_dir / name).is_file():
            yield commit


def describe_reuse(clips_dir: Path, output_dir: Path, autoencoder_path: Path, config: EncodeConfig) -> str | None:
    """What of a folder these clips, weights and settings would use again, as a sentence; None: nothing."""
    plan = plan_encoding(expected_shards(clips_dir, autoencoder_path, config), output_dir)
    return str(plan) if plan.standing or plan.earlier else None


def encode_shards(
    clips_dir: Path,
    output_dir: Path,
    autoencoder_path: Path,
    config: EncodeConfig,
    workers: WorkersConfig,
    null_caption: str = "",
    files: RunFiles = SHARED,
) -> Manifest:
    """Encode the shards that cannot be reused, on the connected Ray cluster, and publish the manifest of all.

    Args:
        null_caption: the caption of samples that are trained without theirs; embedded if there is a text encoder.
        files: of the run that the folders belong to.

    Raises:
        TextEncoderError: the text encoder cannot be used.
    """
    clips = read_manifest(clips_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)  # while shards are replaced, the folder is no finished dataset
    if config.text is not None:
        config = config.model_copy(update={"text": config.text.resolved()})
    text_encoder = None if config.text is None else store_null_caption(output_dir, config.text, null_caption)
    expected = expected_shards(clips_dir, autoencoder_path, config)
    plan = plan_encoding(expected, output_dir)
    missing = [
        ShardTask(
            source=(clips_dir / shard.name).resolve(),
            shard=shard,
            target=(output_dir / shard.name).resolve(),
            inputs=expected[shard.name],
            earlier=plan.earlier.get(shard.name),
        )
        for shard in clips.shards
        if shard.name not in plan.standing
    ]
    if missing:
        num_encoded = sum(task.shard.num_samples for task in missing if task.earlier is None)
        logger.info("%s, %d clips are encoded", plan, num_encoded)
        warn_of_slow_precision(config.precision, workers.gpus_per_worker)
    _encode_missing(missing, clips.num_samples, autoencoder_path, config, workers, files)
    remove_other_shards(output_dir, set(expected))
    encoded, counts = list[EncodedShard](), BucketCounts()

    def rows() -> Iterator[IndexRow]:
        for commit in _commits(expected, output_dir):
            counts.add(commit.rows)
            yield from commit.rows
            encoded.append(commit.model_copy(update={"rows": []}))  # memory grows with the shards, not with the clips

    write_index(output_dir, rows())
    manifest = Manifest(
        kind="latents",
        fingerprint=content_fingerprint(shard.shard for shard in encoded),
        buckets=counts.records(),
        num_samples=clips.num_samples,
        shards=[shard.shard for shard in encoded],
        latent_stats=published_statistics(autoencoder_path) or latent_statistics(encoded),
        text_encoder=text_encoder,
        num_truncated_captions=sum(shard.num_truncated_captions for shard in encoded),
    )
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def _submit(encoder: Any, task: ShardTask) -> Any:  # noqa: ANN401 - Ray's handle and reference
    return encoder.encode.remote(task)


def _encode_missing(
    tasks: list[ShardTask],
    num_clips: int,
    autoencoder_path: Path,
    config: EncodeConfig,
    workers: WorkersConfig,
    files: RunFiles,
) -> None:
    """Encode shards, one actor per worker.

    Args:
        num_clips: of all shards, with those that are reused; the total of the progress bar.
    """
    actor: Any = ray.remote(Encoder).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)

    def start() -> Any:  # noqa: ANN401 - Ray's handle
        return actor.remote(autoencoder_path.resolve(), config, workers.cpus_per_worker, files)

    num_done = num_clips - sum(task.shard.num_samples for task in tasks)
    with (
        bar("encode", num_clips, "clips", start=num_done) as progress,
        results_of_actors(start, _submit, tasks, workers.num_startable()) as done,
    ):
        for _, num_encoded in done:
            num_done += num_encoded
            progress.update(num_done)


def published_statistics(autoencoder_path: Path) -> LatentStats | None:
    """The statistics that were published with an autoencoder's weights; None: they are measured."""
    config = read_config(autoencoder_path)
    if not isinstance(config, WanAutoencoderConfig):
        return None
    return LatentStats(mean=list(config.latent_mean), std=list(config.latent_std))


def latent_statistics(shards: list[EncodedShard]) -> LatentStats:
    """Mean and standard deviation of each channel over the training split, from sums in float64.

    The standard deviation is at least 1e-6.
    """
    count = sum(shard.count for shard in shards)
    mean = torch.tensor([shard.total for shard in shards], dtype=torch.float64).sum(0) / count
    power = torch.tensor([shard.total_squares for shard in shards], dtype=torch.float64).sum(0) / count
    return LatentStats(mean=mean.tolist(), std=(power - mean.square()).clamp_min(1e-12).sqrt().tolist())
