"""Stage 5: prompts become clips. Ray actors load the checkpoint once and take batches of prompts.

Each clip's noise belongs to its own seed, its file is published atomically under a content address, and
`manifest.jsonl` lists them in the order of the prompts; a second start makes only what is missing.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import ray
import torch

from data.files.publish import publish_bytes, publish_text
from data.video.codec import encode_clip
from models.flow.spec import FlowSpec
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.captions import check_same_encoder
from pipeline.run.progress import bar
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler, folder_of, text_encoder_of


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
