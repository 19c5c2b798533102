"""Prompts become clips on Ray actors, each of which loads the model once and samples batches of requests.

The noise of each clip depends on its own seed only. Each file is published atomically under a content address. While a
job runs, a line for each clip is added to `manifest.jsonl`, which costs the same for the first clip and the millionth;
at its end the lines are put into the order of the prompts. The next start makes only the clips that are missing or not
what their lines say. A batch whose actor dies is tried again; one that raises, or that its actors die of, is divided,
so that no request loses another; those that cannot be made are listed in `failed.jsonl`.
"""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError

from data.errors import ReelflowError, shorten
from data.files.checksums import file_sha256
from data.files.jsonl import append_lines, publish_jsonl
from data.files.publish import publish_bytes
from data.records import Frames
from data.video.codec import ClipEncoder
from pipeline.distributed.actor_pool import JobFailure, outcomes_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.run.precision import prepare_to_compute, warn_of_slow_precision
from pipeline.run.progress import bar
from pipeline.sample.config import SampleConfig
from pipeline.sample.images import ImageError
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import (
    FAILED_NAME,
    SAMPLES_NAME,
    FailedClip,
    SampledClip,
    is_as_listed,
    num_unlisted,
    read_samples,
)
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler, NotFiniteError

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # actors that may die of one batch
MAX_DEADLY = 3  # requests, each alone, that actors may die of while no clip is made: it is not a matter of a request
MAX_NAMED = 10  # failures that a message lists


class SamplingError(ReelflowError, RuntimeError):
    """Clips that could not be made; the message names each with its reason."""


@dataclass(frozen=True)
class Samples:
    """What a samples folder holds after a job."""

    clips: list[SampledClip]
    """Of the requests, in their order."""
    earlier: list[SampledClip]
    """Of other requests, which an earlier job made."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a clip could not be made, by the name of its file."""

    @property
    def all_clips(self) -> list[SampledClip]:
        """The lines of the manifest."""
        return [*self.clips, *self.earlier]

    def check_all_made(self) -> None:
        """Refuse to call the job done while clips are missing.

        Raises:
            SamplingError: names those that could not be made.
        """
        if not self.failures:
            return
        named = [f"\n  {file}: {reason}" for file, reason in self.failures.items()]
        rest = f"\n  and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
        raise SamplingError(
            f"{len(named)} of {len(named) + len(self.clips)} clips could not be made; the others are in the folder and "
            f"listed, and the same command tries again:{''.join(named[:MAX_NAMED])}{rest}"
        )


class SamplerActor:
    """A Ray actor that holds a `ClipSampler`."""

    def __init__(self, model_dir: Path, output_dir: Path, config: SampleConfig, num_threads: int) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prepare_to_compute(device, num_threads)
        self._sampler = ClipSampler(open_model(model_dir), config, device)
        self._output_dir = output_dir

    def make(self, requests: list[PromptRequest]) -> list[SampledClip]:
        """Sample and publish clips of one guidance scale, bucket and layout; returns their lines of the manifest.

        Clips are compressed and written while the network computes the next ones, or the next windows of long ones.
        """
        clips: list[Future[list[SampledClip]]] = []
        fps = self._sampler.model.bucket(requests[0].bucket).fps
        with ThreadPoolExecutor(max_workers=1) as writer:
            added: Future[None] | None = None
            for group in self._sampler.groups(requests):
                encoders, total = [ClipEncoder(fps) for _ in group], 0
                for frames, calls in self._sampler.stream_group(group):
                    if added is not None:
                        added.result()  # the memory of one group waits, and an error ends the work
                    added, total = writer.submit(_add, encoders, frames), total + calls
                clips.append(writer.submit(self._publish, group, encoders, total))
        return [clip for published in clips for clip in published.result()]

    def _publish(self, group: Sequence[PromptRequest], encoders: list[ClipEncoder], calls: int) -> list[SampledClip]:
        clips = []
        for request, encoder in zip(group, encoders, strict=True):
            content = encoder.finish()
            publish_bytes(self._output_dir / request.file_name, content)
            digest = sha256(content).hexdigest()
            clips.append(SampledClip(file=request.file_name, request=request, num_network_calls=calls, sha256=digest))
        return clips


def _add(encoders: Sequence[ClipEncoder], frames: Sequence[Frames]) -> None:
    for encoder, part in zip(encoders, frames, strict=True):
        encoder.add(part)


def sample_clips(
    model: SampledModel,
    requests: list[PromptRequest],
    output_dir: Path,
    config: SampleConfig,
    workers: WorkersConfig,
) -> Samples:
    """Sample the requests whose clips do not exist yet, on the connected Ray cluster.

    Args:
        config: settings that have passed `check_can_sample`.

    Raises:
        SamplesError: the manifest in `output_dir` is damaged.
        RayTaskError: what an actor needs, such as space on the disk, is missing.
        SamplingError: the actors die of several requests, and none has sampled anything.
        WorkerStartError: the model cannot be loaded.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    made, earlier = reusable_clips(output_dir, requests)
    _publish_manifest(output_dir, requests, made, earlier)  # without lines that were cut short, or whose files are gone
    (output_dir / FAILED_NAME).unlink(missing_ok=True)
    missing = [request for request in requests if request.id not in made]
    if missing:
        warn_of_slow_precision(config.precision, workers.gpus_per_worker)
    actor: Any = ray.remote(SamplerActor).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
    failures: dict[str, str] = {}

    def start() -> Any:  # noqa: ANN401 - Ray's handle
        return actor.remote(model.folder.resolve(), output_dir.resolve(), config, workers.cpus_per_worker)

    batches = deque(batches_of(missing, config.batch))
    with (
        bar("sample", len(requests), "clips", start=len(requests) - len(missing)) as progress,
        outcomes_of_actors(
            start, lambda sampler, batch: sampler.make.remote(batch), batches, workers.num_startable(), MAX_ATTEMPTS
        ) as outcomes,
    ):
        has_sampled, num_deadly = False, 0
        for batch, outcome in outcomes:
            if not isinstance(outcome, JobFailure):
                has_sampled = True
                made |= {clip.request.id: clip for clip in outcome}
                append_lines(output_dir / SAMPLES_NAME, outcome)  # a stop loses only the running batches
            elif isinstance(outcome.error, RayTaskError) and len(batch) > 1:
                _raise_unless_of_a_request(outcome.error)
                batches.extend([request] for request in batch)
            elif len(batch) > 1:
                logger.warning(
                    "  warning: a process died %d times of a batch of %d clips, which are made one by one (%s); if "
                    "memory ran out, lower sample.batch",
                    MAX_ATTEMPTS,
                    len(batch),
                    _in_a_line(str(outcome.error)),
                )
                singly = [[request] for request in batch]
                batches.extend(singly) if has_sampled else batches.extendleft(singly[::-1])
            else:
                reason = _reason(outcome)
                num_deadly += not isinstance(outcome.error, RayTaskError)
                if num_deadly == MAX_DEADLY and not has_sampled:
                    raise SamplingError(f"no clip could be made: {reason}") from outcome.error
                failures |= {request.file_name: f"{_described(request)}: {reason}" for request in batch}
                append_lines(
                    output_dir / FAILED_NAME, [FailedClip(request=request, reason=reason) for request in batch]
                )
            progress.update(len(made))
    clips = _publish_manifest(output_dir, requests, made, earlier)
    return Samples(clips, earlier, failures)


def reusable_clips(output_dir: Path, requests: list[PromptRequest]) -> tuple[dict[str, SampledClip], list[SampledClip]]:
    """The clips of a folder: those of the requests that are whole, by id, and those of other requests.

    The name of a clip's file is the address of its content, so a request is compared with the file of its own name
    alone: it must have the checksum of its line. A whole file whose line was lost is listed again, and of a line there
    is, only the checksum and the number of network calls are kept.

    Raises:
        SamplesError: the manifest is damaged.
    """
    listed = {clip.request.id: clip for clip in read_samples(output_dir)}
    wanted = {request.id: request for request in requests}
    files = {request.file_name for request in requests}
    made, num_cut = {}, 0
    for key, request in wanted.items():
        path = output_dir / request.file_name
        line = listed.get(key)
        if is_as_listed(path, line):
            calls = None if line is None else line.num_network_calls
            digest = file_sha256(path) if line is None or line.sha256 is None else line.sha256
            made[key] = SampledClip(file=request.file_name, request=request, num_network_calls=calls, sha256=digest)
        else:
            num_cut += path.is_file()
    others = [clip for key, clip in listed.items() if key not in wanted]
    earlier = [clip for clip in others if clip.file not in files and (output_dir / clip.file).is_file()]
    num_adopted, num_gone = len(made.keys() - listed.keys()), len(others) - len(earlier)
    for number, text in (
        (
            num_unlisted(output_dir, files | {clip.file for clip in earlier}),
            f"clips in the folder are in no line of {SAMPLES_NAME} and of none of these prompts and settings: they "
            "stay, but out of the gallery; sample with their own prompts and settings to list them again",
        ),
        (num_cut, "clips are damaged or cut short, and are made again"),
        (num_adopted, f"clips were not listed in {SAMPLES_NAME}; they are listed again"),
        (num_gone, f"clips of other settings are gone; their lines leave {SAMPLES_NAME}"),
    ):
        if number:
            logger.warning("  warning: %s: %d %s", output_dir, number, text)
    return made, earlier


def _raise_unless_of_a_request(error: RayTaskError) -> None:
    """Raise an error that the other requests would meet too, such as a full disk or another text encoder."""
    if isinstance(error.cause, OSError | ReelflowError) and not isinstance(error.cause, NotFiniteError | ImageError):
        raise error


def _reason(failure: JobFailure) -> str:
    """Why a request failed, in a line.

    Raises:
        RayTaskError: the error is not about a request.
    """
    error = failure.error
    if isinstance(error, RayTaskError):
        _raise_unless_of_a_request(error)
        cause = error.cause
        return _in_a_line(str(cause) if isinstance(cause, ReelflowError) else f"{type(cause).__name__}: {cause}")
    return (
        f"the process that samples it died {MAX_ATTEMPTS} times ({_in_a_line(str(error))}); if memory ran out, lower "
        "cluster.workers.num_workers, or ask for a smaller bucket"
    )


def _in_a_line(text: str) -> str:
    return shorten(" ".join(text.split()), 400)


def _described(request: PromptRequest) -> str:
    return f"prompt {shorten(request.prompt, 60)!r}, seed {request.seed}"


def _publish_manifest(
    output_dir: Path, requests: list[PromptRequest], made: dict[str, SampledClip], earlier: list[SampledClip]
) -> list[SampledClip]:
    """List the clips that have been made, in the order of the requests, then those of other requests."""
    clips = [made[request.id] for request in requests if request.id in made]
    publish_jsonl(output_dir / SAMPLES_NAME, [*clips, *earlier])
    return clips


def batches_of(requests: Sequence[PromptRequest], size: int) -> list[list[PromptRequest]]:
    """Batches of equal guidance scale, bucket and layout, in the order of the requests."""
    groups: dict[tuple[object, ...], list[PromptRequest]] = {}
    for request in requests:
        groups.setdefault((request.guidance_scale, request.bucket, request.layout), []).append(request)
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
