"""Stage 3: clip shards become latent shards, with the statistics of each latent channel.

One actor per worker holds the autoencoder, and the text encoder if there is one; one task turns one clip shard into one
latent shard and commits it, so a second start encodes only the shards that are missing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER, ClipRecord
from data.dataset.index import IndexRow, write_index
from data.dataset.latents import LATENT_TENSOR
from data.dataset.manifest import (
    MANIFEST_NAME,
    LatentStats,
    Manifest,
    ShardRecord,
    content_fingerprint,
    count_buckets,
    read_manifest,
)
from data.dataset.shards import read_shard, write_shard
from data.files.checksums import file_sha256
from data.files.publish import publish_text
from data.records import Record
from models.text.pretrained import PretrainedTextEncoder, check_text_encoder, text_encoder_fingerprint
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.captions import store_null_caption, text_tensors
from pipeline.encode.chunks import clips_per_call, encode_clips
from pipeline.encode.codec import load_autoencoder
from pipeline.encode.config import EncodeConfig
from pipeline.ingest.shard import COMMIT_SUFFIX, remove_other_shards
from pipeline.run.fingerprints import fingerprint, output_settings
from pipeline.run.precision import autocast
from pipeline.run.progress import bar


class EncodedShard(Record):
    """Published beside a latent shard after it; holds the sums the statistics are made from."""

    made_from: str  # fingerprint of the clip shard's bytes, the autoencoder's weights and the settings
    shard: ShardRecord
    rows: list[IndexRow]
    count: int  # values per channel, training split only
    total: list[float]  # per channel
    total_squares: list[float]
    num_cut_captions: int = 0  # by the text encoder, at max_tokens


class Encoder:
    """An actor: holds the autoencoder and the text encoder, and encodes one shard per call."""

    def __init__(self, autoencoder_path: Path, config: EncodeConfig, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = load_autoencoder(autoencoder_path).to(self._device)
        self._config = config
        text = config.text
        self._text = None if text is None else PretrainedTextEncoder(text.folder, text.max_tokens, self._device)

    def encode(self, source: Path, shard: ShardRecord, target: Path, made_from: str) -> int:
        """Encode a shard, write it and commit it; returns how many clips it holds."""
        channels = self._network.config.latent_channels
        count, total, squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
        clips = list(read_shard(source, VIDEO_MEMBER, shard))
        payloads: dict[str, bytes] = {}
        for batch in same_shape_batches(clips, self._config):
            means = self._means(batch)
            texts = self._texts([record.caption for record, _ in batch])
            for (record, _), mean, text in zip(batch, means, texts, strict=True):
                payloads[record.key] = save({LATENT_TENSOR: mean.contiguous(), **text})
                if record.split == "train":
                    values = mean.double().flatten(1)
                    count += values.shape[1]
                    total += values.sum(1)
                    squares += values.square().sum(1)
        target.with_suffix(COMMIT_SUFFIX).unlink(missing_ok=True)  # of a shard made from something else
        samples = [(record, payloads[record.key]) for record, _ in clips]
        written, rows = write_shard(target, samples, LATENT_MEMBER)
        commit = EncodedShard(
            made_from=made_from,
            shard=written,
            rows=rows,
            count=count,
            total=total.tolist(),
            total_squares=squares.tolist(),
            num_cut_captions=0 if self._text is None else self._text.num_cut([record.caption for record, _ in clips]),
        )
        publish_text(target.with_suffix(COMMIT_SUFFIX), commit.model_dump_json())
        return len(samples)

    @torch.inference_mode()
    def _means(self, batch: list[tuple[ClipRecord, bytes]]) -> Tensor:
        bucket, contents = batch[0][0].bucket, [content for _, content in batch]
        with autocast(self._config.precision, self._device):
            return encode_clips(self._network, contents, bucket, self._config.chunk_frames)

    def _texts(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """What is stored of each caption; nothing without a text encoder."""
        return [{} for _ in captions] if self._text is None else text_tensors(self._text(captions))


def same_shape_batches(
    clips: list[tuple[ClipRecord, bytes]], config: EncodeConfig
) -> Iterator[list[tuple[ClipRecord, bytes]]]:
    """The clips of a call each: of one bucket, in the order of the shard, and fewer the longer they are."""
    buckets = {record.bucket: None for record, _ in clips}  # each once, in order
    for bucket in buckets:
        same = [clip for clip in clips if clip[0].bucket == bucket]
        size = min(config.batch, clips_per_call(bucket.num_frames, config.chunk_frames))
        yield from (same[at : at + size] for at in range(0, len(same), size))


def encoding_settings(config: EncodeConfig, buckets: Iterable[Bucket]) -> dict[str, Any]:
    """The settings that the latents of clips of these shapes depend on.

    Kernels round by the shape of what they are given: `chunk_frames` counts where it makes calls smaller. A text
    encoder counts by its content, not by where it lies.

    Raises:
        TextEncoderError: there is no text encoder in that folder.
    """
    is_bound = any(config.batch * bucket.num_frames > config.chunk_frames for bucket in buckets)
    settings = output_settings(config)
    if not is_bound:
        del settings["chunk_frames"]
    if config.text is not None:
        check_text_encoder(config.text.folder)
        settings["text"] = [text_encoder_fingerprint(config.text.folder), config.text.max_tokens]
    return settings


def expected_shards(clips: Manifest, output_dir: Path, autoencoder_path: Path, config: EncodeConfig) -> dict[Path, str]:
    """Where the latents of each clip shard belong, and the fingerprint of what they are made from."""
    weights = file_sha256(autoencoder_path)
    settings = encoding_settings(config, (record.bucket for record in clips.buckets))
    return {
        (output_dir / shard.name).resolve(): fingerprint([shard.sha256, weights, settings]) for shard in clips.shards
    }


def read_encoded(path: Path, made_from: str) -> EncodedShard | None:
    """The commit of a latent shard that was made from just this, or None."""
    try:
        commit = EncodedShard.model_validate_json(path.with_suffix(COMMIT_SUFFIX).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None
    return commit if commit.made_from == made_from and path.is_file() else None


def count_reusable_latents(clips_dir: Path, output_dir: Path, autoencoder_path: Path, config: EncodeConfig) -> int:
    """How many latent shards in a folder are what these clips, weights and settings would give again."""
    expected = expected_shards(read_manifest(clips_dir), output_dir, autoencoder_path, config)
    return sum(read_encoded(path, made_from) is not None for path, made_from in expected.items())


def encode_shards(
    clips_dir: Path,
    output_dir: Path,
    autoencoder_path: Path,
    config: EncodeConfig,
    workers: WorkersConfig,
    null_caption: str = "",
) -> Manifest:
    """Run the stage on the connected Ray cluster; shards that were made from the same stay.

    Raises:
        TextEncoderError: the text encoder cannot be used.
    """
    clips = read_manifest(clips_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MANIFEST_NAME).unlink(missing_ok=True)  # no dataset until all of it is
    if config.text is not None:
        config = config.model_copy(update={"text": config.text.resolved()})
    text_encoder = None if config.text is None else store_null_caption(output_dir, config.text, null_caption)
    targets = expected_shards(clips, output_dir, autoencoder_path, config)
    by_name = {path.name: (path, made_from) for path, made_from in targets.items()}
    missing = [shard for shard in clips.shards if read_encoded(*by_name[shard.name]) is None]
    num_done = clips.num_samples - sum(shard.num_samples for shard in missing)
    actor = ray.remote(Encoder).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
    actors: list[Any] = [
        actor.remote(autoencoder_path.resolve(), config, workers.cpus_per_worker)
        for _ in range(min(workers.startable(), len(missing)))
    ]
    waiting, running = list(reversed(missing)), {}
    idle = actors.copy()
    with bar("encode", clips.num_samples, "clips", start=num_done) as progress:
        while waiting or running:
            while waiting and idle:
                shard, worker = waiting.pop(), idle.pop()
                task = worker.encode.remote((clips_dir / shard.name).resolve(), shard, *by_name[shard.name])
                running[task] = worker
            finished, _ = ray.wait(list(running), num_returns=1)
            for task in finished:
                num_done += ray.get(task)
                idle.append(running.pop(task))
                progress.update(num_done)
    for worker in actors:
        ray.kill(worker)
    remove_other_shards(output_dir, {path.name for path in targets})
    encoded = [commit for target in targets.items() if (commit := read_encoded(*target)) is not None]
    rows = [row for shard in encoded for row in shard.rows]
    write_index(output_dir, rows)
    manifest = Manifest(
        kind="latents",
        fingerprint=content_fingerprint(shard.shard for shard in encoded),
        buckets=count_buckets(rows),
        num_samples=clips.num_samples,
        shards=[shard.shard for shard in encoded],
        latent_stats=latent_statistics(encoded),
        text_encoder=text_encoder,
        num_cut_captions=sum(shard.num_cut_captions for shard in encoded),
    )
    publish_text(output_dir / MANIFEST_NAME, manifest.model_dump_json(indent=1))
    return manifest


def latent_statistics(shards: list[EncodedShard]) -> LatentStats:
    """Exact mean and standard deviation of each channel over the training split."""
    count = sum(shard.count for shard in shards)
    mean = torch.tensor([shard.total for shard in shards], dtype=torch.float64).sum(0) / count
    power = torch.tensor([shard.total_squares for shard in shards], dtype=torch.float64).sum(0) / count
    return LatentStats(mean=mean.tolist(), std=(power - mean.square()).clamp_min(1e-12).sqrt().tolist())
