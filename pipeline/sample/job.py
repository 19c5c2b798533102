"""Prompts become clips on Ray actors, each of which loads the model once and samples batches of requests.

The noise of each clip depends on its own seed only. Each file is published atomically under a content address. While a
job runs, a line for each clip is added to `manifest.jsonl`, which costs the same for the first clip and the millionth;
at its end the lines are put into the order of the prompts. The next start makes only the clips that are missing or not
what their lines say. A batch whose actor dies is tried again; one that raises, or that its actors die of, is divided,
so that no request loses another; those that cannot be made are listed in `failed.jsonl`.

Requests are planned while they are needed, and never all in memory.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayTaskError

from data.errors import ReelflowError, shorten
from data.files.jsonl import append_lines, iterate_jsonl
from data.files.publish import remove_unpublished
from pipeline.distributed.actor_pool import JobFailure, outcomes_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.run.precision import warn_of_slow_precision
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, WorkerFiles
from pipeline.run.signals import stopped_by_sigterm
from pipeline.sample.actor import SamplerActor
from pipeline.sample.batches import Batches
from pipeline.sample.config import MP4_ALONE, OutputsConfig, SampleConfig
from pipeline.sample.images import ImageError
from pipeline.sample.manifest import Manifest
from pipeline.sample.model import SampledModel
from pipeline.sample.outputs import FailedClip, SampledClip
from pipeline.sample.requests import PromptRequest
from pipeline.sample.reuse import reused_clips
from pipeline.sample.sampler import NotFiniteError
from pipeline.sample.shards import Shard, failed_name, manifest_name

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # actors that may die of one batch
MAX_DEADLY = 3  # requests, each alone, that actors may die of while no clip is made: it is not a matter of a request
MAX_NAMED = 10  # failures that a message lists


class SamplingError(ReelflowError, RuntimeError):
    """Clips that could not be made; the message names each with its reason."""


@dataclass
class Samples:
    """What a samples folder holds after a job."""

    manifest: Path
    """The file that lists its clips."""
    num_clips: int = 0
    """Of the requests. They are the first lines of the manifest, in the order of the requests."""
    num_failures: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    """Why a clip could not be made, by the name of its file or the place of its row; the first `MAX_NAMED`."""

    @property
    def clips(self) -> list[SampledClip]:
        """Those of the requests, in their order."""
        return list(islice(self.all_clips, self.num_clips))

    @property
    def earlier(self) -> list[SampledClip]:
        """Those of other requests, which an earlier job made."""
        return list(islice(self.all_clips, self.num_clips, None))

    @property
    def all_clips(self) -> Iterator[SampledClip]:
        """The lines of the manifest, read one at a time."""
        return iterate_jsonl(self.manifest, SampledClip)

    def add_failure(self, name: str, reason: str) -> None:
        """Count a clip that could not be made."""
        self.num_failures += 1
        if len(self.failures) < MAX_NAMED:
            self.failures[name] = reason

    def check_all_made(self) -> None:
        """Refuse to call the job done while clips are missing.

        Raises:
            SamplingError: names those that could not be made.
        """
        if not self.num_failures:
            return
        named = [f"\n  {name}: {reason}" for name, reason in self.failures.items()]
        rest = f"\n  and {self.num_failures - len(named)} more" if self.num_failures > len(named) else ""
        raise SamplingError(
            f"{self.num_failures} of {self.num_failures + self.num_clips} clips could not be made; the others are in "
            f"the folder and listed, and the same command tries again:{''.join(named)}{rest}"
        )


def sample_clips(
    model: SampledModel,
    requests: Iterable[PromptRequest],
    output_dir: Path,
    config: SampleConfig,
    workers: WorkersConfig,
    *,
    outputs: OutputsConfig = MP4_ALONE,
    shard: Shard | None = None,
    bad_rows: Mapping[str, str] = MappingProxyType({}),
    files: WorkerFiles = SHARED,
) -> Samples:
    """Sample the requests whose clips do not exist yet, on the connected Ray cluster.

    Args:
        requests: iterated several times, and the same each time.
        output_dir: held by `held_folder`.
        config: settings that have passed `check_can_sample`.
        outputs: the files to make of each clip, whose encoder has passed `check_encoder`.
        shard: sample these of the requests only, and list them in a file of its own.
        bad_rows: rows that are no requests, with the reasons: they count as failures.
        files: by which workers on other machines get the model and give clips.

    Raises:
        SamplesError: the manifest in `output_dir` is damaged.
        RayTaskError: what an actor needs, such as space on the disk, is missing.
        SamplingError: the actors die of several requests, and none has sampled anything.
        WorkerStartError: the model cannot be loaded.
        NodeLostError: the raylet of this program's node has ended; clips that were made are listed.
        StoppedError: the process got SIGTERM; clips that were made are listed.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if shard is None:
        remove_unpublished(output_dir)

    def own() -> Iterator[PromptRequest]:
        return (request for request in requests if shard is None or shard.owns(request.id))

    samples, failed_path = Samples(output_dir / manifest_name(shard)), output_dir / failed_name(shard)
    failed_path.unlink(missing_ok=True)
    for place, reason in bad_rows.items() if shard is None or shard.number == 1 else ():
        samples.add_failure(place, reason)
        append_lines(failed_path, [FailedClip(row=place, reason=reason)])
    with Manifest(output_dir, shard) as manifest, stopped_by_sigterm(f"sampling into {output_dir} was stopped"):
        reused = reused_clips(manifest, own, model.fingerprint, str(model.folder.resolve()), outputs)
        num_missing = reused.num_requests - reused.num_made
        if num_missing:
            warn_of_slow_precision(config.precision, workers.gpus_per_worker)
            batches = Batches((request for request in own() if request.id not in manifest), config.batch)
            with bar("sample", reused.num_requests, "clips", start=reused.num_made) as progress:
                made = _outcomes(model, batches, output_dir, config, outputs, workers, num_missing, files)
                for done in made:
                    if isinstance(done, FailedClip):
                        assert done.request is not None
                        samples.add_failure(done.request.file_name, f"{_described(done.request)}: {done.reason}")
                        append_lines(failed_path, [done])
                    else:
                        manifest.append(done)  # a stop loses only the running batches
                        samples.num_clips += len(done)
                    progress.update(reused.num_made + samples.num_clips)
            manifest.reorder(own())
        samples.num_clips += reused.num_made
    return samples


def folders_of_models(model: SampledModel, requests: Iterable[PromptRequest]) -> Iterator[Path]:
    """Folders, absolute, in which those of all models lie that the actors of a job load; some more than once."""
    yield model.folder.resolve().parent
    for request in requests:
        for placed in (request.checkpoint, request.weaker):
            if placed is not None:
                yield Path(placed.folder).parent


def _outcomes(
    model: SampledModel,
    batches: Batches,
    output_dir: Path,
    config: SampleConfig,
    outputs: OutputsConfig,
    workers: WorkersConfig,
    num_missing: int,
    files: WorkerFiles,
) -> Iterator[list[SampledClip] | FailedClip]:
    """The lines of clips as they are made, and requests that cannot be made."""
    size = config.sequence_parallel
    actor: Any = ray.remote(SamplerActor).options(
        num_cpus=size * workers.cpus_per_worker, num_gpus=size * workers.gpus_per_worker
    )

    def start() -> Any:  # noqa: ANN401 - Ray's handle
        return actor.remote(
            model.folder.resolve(), output_dir.resolve(), config, workers.cpus_per_worker, outputs, files
        )

    def submit(sampler: Any, batch: list[PromptRequest]) -> Any:  # noqa: ANN401 - Ray's handles
        return sampler.make.remote(batch)

    num_actors = min(workers.num_startable() if size == 1 else _num_groups(workers, size), num_missing)
    has_sampled, num_deadly = False, 0
    with outcomes_of_actors(start, submit, batches, num_actors, MAX_ATTEMPTS) as outcomes:
        for batch, outcome in outcomes:
            if not isinstance(outcome, JobFailure):
                has_sampled = True
                yield outcome
            elif isinstance(outcome.error, RayTaskError) and len(batch) > 1:
                _raise_unless_of_a_request(outcome.error)
                batches.retry_singly(batch, first=False)
            elif len(batch) > 1:
                logger.warning(
                    "  warning: a process died %d times of a batch of %d clips, which are made one by one (%s); if "
                    "memory ran out, lower sample.batch",
                    MAX_ATTEMPTS,
                    len(batch),
                    _in_a_line(str(outcome.error)),
                )
                batches.retry_singly(batch, first=not has_sampled)
            else:
                reason = _reason(outcome)
                num_deadly += not isinstance(outcome.error, RayTaskError)
                if num_deadly == MAX_DEADLY and not has_sampled:
                    raise SamplingError(f"no clip could be made: {reason}") from outcome.error
                yield FailedClip(request=batch[0], reason=reason)


def _num_groups(workers: WorkersConfig, size: int) -> int:
    """How many groups of workers sample.

    Raises:
        SamplingError: not one.
    """
    if num_groups := workers.num_groups(size):
        if (num_idle := workers.num_workers - size * num_groups) > 0:
            logger.warning(
                "  warning: sample.sequence_parallel: %d groups of %d workers sample; %d of %d workers are idle",
                num_groups,
                size,
                num_idle,
                workers.num_workers,
            )
        return num_groups
    raise SamplingError(
        f"sample.sequence_parallel is {size}, but no machine has room for {size} of the {workers.num_workers} workers "
        f"(cluster.workers) with {workers.cpus_per_worker} CPUs and {workers.gpus_per_worker:g} GPUs each: lower it, "
        "or give other resources"
    )


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
