"""Stage 5: prompts become clips. Ray actors load the checkpoint once and take batches of prompts.

Each clip's noise belongs to its own seed, its file is published atomically under a content address, and
`manifest.jsonl` lists them in the order of the prompts; a second start makes only what is missing.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import ray
import torch
from pydantic import BaseModel, ConfigDict

from data.buckets import Bucket
from data.publish import publish_bytes, publish_text
from data.shards import LatentStats, TextEncoderRecord
from data.video import Frames, encode_clip
from models.autoencoder import latent_shape
from models.dit import DiT, DiTConfig
from models.flow.solver import Counted
from models.pretrained_text import PretrainedTextEncoder
from pipeline.captions import byte_captions, check_same_encoder
from pipeline.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from pipeline.chunks import decode_clips
from pipeline.flow_spec import FlowSpec, denormalize
from pipeline.lora import network_weights
from pipeline.progress import bar
from pipeline.prompts import PromptRequest
from pipeline.sampler import SampleConfig, Wanted, sample_latents
from pipeline.train import autocast
from pipeline.train_autoencoder import load_autoencoder
from pipeline.train_dit import AUTOENCODER_NAME
from pipeline.workers import WorkersConfig

SAMPLES_NAME = "manifest.jsonl"


class SampledClip(BaseModel):
    """One line of manifest.jsonl."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    request: PromptRequest
    num_network_calls: int


def trained_buckets(checkpoint: Checkpoint) -> list[Bucket]:
    """The shapes a checkpoint was trained on, that with most clips first.

    Raises:
        CheckpointError: it is not a DiT's, or was made by an older program.
    """
    if checkpoint.record.kind != "dit":
        raise CheckpointError(f"{checkpoint.folder} holds a {checkpoint.record.kind}; sampling takes a dit checkpoint")
    if "buckets" not in checkpoint.record.trained:
        raise CheckpointError(f"{checkpoint.folder} was made by an older reelflow, which kept one bucket; train again")
    return [Bucket(**fields) for fields in checkpoint.record.trained["buckets"]]


def text_encoder_of(checkpoint: Checkpoint) -> TextEncoderRecord | None:
    """The frozen encoder that a DiT was trained with; None: it reads captions itself."""
    fields = checkpoint.record.trained.get("text_encoder")
    return None if fields is None else TextEncoderRecord(**fields)


def folder_of(encoder: TextEncoderRecord, config: SampleConfig) -> Path:
    """Where that encoder is."""
    return Path(encoder.folder) if config.text_encoder is None else config.text_encoder.expanduser().resolve()


class ClipSampler:
    """A checkpoint, loaded: latents from noise, pixels from latents. Needs nothing but the checkpoint.

    A frozen text encoder is too large to travel with every checkpoint: it is read from its own folder.
    """

    def __init__(self, checkpoint: Checkpoint, config: SampleConfig, device: torch.device) -> None:
        trained = checkpoint.record.trained
        self.config, self.device = config, device
        self.buckets = {bucket.name: bucket for bucket in trained_buckets(checkpoint)}
        self.flow = FlowSpec(**trained["flow"])
        self.stats = LatentStats(**trained["latent_stats"])
        encoder = text_encoder_of(checkpoint)
        width = None if encoder is None else encoder.width
        self.network = DiT(DiTConfig(**trained["model"]), self.stats.num_channels, width)
        if encoder is None:
            self.read_captions = byte_captions(self.network.config.text.max_bytes)
        else:
            self.read_captions = PretrainedTextEncoder(folder_of(encoder, config), encoder.max_tokens, device)
        self.network.load_state_dict(dict(network_weights(checkpoint, config.weights)))
        self.network.to(device).eval().requires_grad_(False)
        self.autoencoder = load_autoencoder(checkpoint.folder / AUTOENCODER_NAME).to(device)

    @torch.inference_mode()
    def sample(self, requests: list[PromptRequest]) -> tuple[list[Frames], int]:
        """Clips for requests of one guidance scale and bucket, and the number of network calls."""
        bucket = self.buckets[requests[0].bucket]
        shape = latent_shape(self.autoencoder.config, bucket.num_frames, bucket.height, bucket.width)
        network = Counted(self.network)
        with autocast(self.config.precision, self.device):
            latents = sample_latents(
                network,
                self.flow,
                self.config,
                [Wanted(request.prompt, request.seed) for request in requests],
                guidance_scale=requests[0].guidance_scale,
                shape=shape,
                read_captions=self.read_captions,
                device=self.device,
            )
            clips = decode_clips(self.autoencoder, denormalize(latents, self.stats))
        return clips, network.calls


class SamplerActor:
    """A `ClipSampler` in a Ray worker."""

    def __init__(self, checkpoint_dir: Path, output_dir: Path, config: SampleConfig, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sampler = ClipSampler(open_checkpoint(checkpoint_dir), config, device)
        self._output_dir = output_dir

    def make(self, requests: list[PromptRequest]) -> list[SampledClip]:
        """Sample a batch and publish each clip, then its line for the manifest."""
        frames, calls = self._sampler.sample(requests)
        clips = []
        for request, clip in zip(requests, frames, strict=True):
            fps = self._sampler.buckets[request.bucket].fps
            publish_bytes(self._output_dir / request.file_name, encode_clip(clip, fps))
            clips.append(SampledClip(file=request.file_name, request=request, num_network_calls=calls))
        return clips


def sample_clips(
    checkpoint: Checkpoint,
    requests: list[PromptRequest],
    output_dir: Path,
    config: SampleConfig,
    workers: WorkersConfig,
) -> list[SampledClip]:
    """Run the stage on the connected Ray cluster; clips that are already there stay.

    Raises:
        CheckpointError: the checkpoint was not trained for the schedule.
        TextEncoderError: its text encoder is not there.
    """
    encoder = text_encoder_of(checkpoint)
    if encoder is not None:
        check_same_encoder(encoder, folder_of(encoder, config))
    if config.schedule != "full_sequence" and FlowSpec(**checkpoint.record.trained["flow"]).times_per != "frame":
        raise CheckpointError(
            f"sample.schedule is {config.schedule!r}, but {checkpoint.folder} was trained with one time for all "
            "frames: use full_sequence, or train with dit.flow.times_per=frame"
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    made = {clip.request.id: clip for clip in read_samples(output_dir) if (output_dir / clip.file).is_file()}
    missing = [request for request in requests if request.id not in made]
    actor = ray.remote(SamplerActor).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
    batches = canonical_batches(missing, config.batch)
    actors: list[Any] = [
        actor.remote(checkpoint.folder.resolve(), output_dir.resolve(), config, workers.cpus_per_worker)
        for _ in range(min(workers.startable(), len(batches)))
    ]
    idle, running = actors.copy(), {}
    with bar("sample", len(requests), "clips", start=len(requests) - len(missing)) as progress:
        while batches or running:
            while batches and idle:
                worker = idle.pop()
                running[worker.make.remote(batches.pop(0))] = worker
            finished, _ = ray.wait(list(running), num_returns=1)
            for task in finished:
                made |= {clip.request.id: clip for clip in ray.get(task)}
                idle.append(running.pop(task))
                # After every batch: a stop loses at most the running ones.
                _publish_manifest(output_dir, requests, made)
            progress.update(sum(request.id in made for request in requests))
    for worker in actors:
        ray.kill(worker)
    return _publish_manifest(output_dir, requests, made)


def _publish_manifest(
    output_dir: Path, requests: list[PromptRequest], made: dict[str, SampledClip]
) -> list[SampledClip]:
    clips = [made[request.id] for request in requests if request.id in made]
    publish_text(output_dir / SAMPLES_NAME, "".join(clip.model_dump_json() + "\n" for clip in clips))
    return clips


def canonical_batches(requests: list[PromptRequest], size: int) -> list[list[PromptRequest]]:
    """Batches of equal guidance scale and bucket, in the order of the content addresses.

    The kernels of some processors round a row by its place in the batch: with a canonical order the same requests give
    the same bytes, in whatever order they are listed.
    """
    ordered = sorted(requests, key=lambda request: (request.guidance_scale, request.bucket, request.id))
    batches = []
    for _, group in groupby(ordered, key=lambda request: (request.guidance_scale, request.bucket)):
        same = list(group)
        batches += [same[at : at + size] for at in range(0, len(same), size)]
    return batches


def read_samples(output_dir: Path) -> list[SampledClip]:
    """The lines of a samples folder's manifest; none where there is no manifest."""
    path = output_dir / SAMPLES_NAME
    if not path.is_file():
        return []
    return [SampledClip(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
