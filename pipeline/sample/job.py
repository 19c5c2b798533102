"""Prompts become clips on Ray actors, each of which loads the checkpoint once and samples batches of requests.

The noise of each clip depends on its own seed only. Each file is published atomically under a content address, and
`manifest.jsonl` lists the files in the order of the prompts; the next start makes only the clips that are missing.
"""

from itertools import groupby
from pathlib import Path
from typing import Any

import ray
import torch

from data.files.jsonl import publish_jsonl
from data.files.publish import publish_bytes
from data.video.codec import encode_clip
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint
from pipeline.distributed.actor_pool import results_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.run.progress import bar
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler


class SamplerActor:
    """A Ray actor that holds a `ClipSampler`."""

    def __init__(self, checkpoint_dir: Path, output_dir: Path, config: SampleConfig, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._sampler = ClipSampler(open_checkpoint(checkpoint_dir), config, device)
        self._output_dir = output_dir

    def make(self, requests: list[PromptRequest]) -> list[SampledClip]:
        """Sample and publish clips of one guidance scale and bucket; returns their lines of the manifest."""
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
    """Sample the requests whose clips do not exist yet, on the connected Ray cluster.

    Args:
        config: settings that have passed `check_can_sample`.

    Returns:
        All clips, in the order of the requests.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    made = {clip.request.id: clip for clip in read_samples(output_dir) if (output_dir / clip.file).is_file()}
    missing = [request for request in requests if request.id not in made]
    actor: Any = ray.remote(SamplerActor).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)

    def start() -> Any:  # noqa: ANN401 - Ray's handle
        return actor.remote(checkpoint.folder.resolve(), output_dir.resolve(), config, workers.cpus_per_worker)

    batches = canonical_batches(missing, config.batch)
    with (
        bar("sample", len(requests), "clips", start=len(requests) - len(missing)) as progress,
        results_of_actors(
            start, lambda sampler, batch: sampler.make.remote(batch), batches, workers.num_startable()
        ) as done,
    ):
        for _, clips in done:
            made |= {clip.request.id: clip for clip in clips}
            _publish_manifest(output_dir, requests, made)  # after every batch: a stop loses only the running ones
            progress.update(sum(request.id in made for request in requests))
    return _publish_manifest(output_dir, requests, made)


def _publish_manifest(
    output_dir: Path, requests: list[PromptRequest], made: dict[str, SampledClip]
) -> list[SampledClip]:
    """List the clips that have been made, in the order of the requests."""
    clips = [made[request.id] for request in requests if request.id in made]
    publish_jsonl(output_dir / SAMPLES_NAME, clips)
    return clips


def canonical_batches(requests: list[PromptRequest], size: int) -> list[list[PromptRequest]]:
    """Batches of equal guidance scale and bucket, in the order of the content addresses.

    On some processors the rounding of a row depends on its position in the batch. In this order the same requests give
    the same bytes, however they are listed.
    """
    ordered = sorted(requests, key=lambda request: (request.guidance_scale, request.bucket, request.id))
    batches = []
    for _, group in groupby(ordered, key=lambda request: (request.guidance_scale, request.bucket)):
        same = list(group)
        batches += [same[at : at + size] for at in range(0, len(same), size)]
    return batches
