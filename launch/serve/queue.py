"""Clips that people ask for, made one after another in a thread, as the actors of a job make them.

The requests are planned, and the files written, by the code of a job: a clip has the bytes that a job gives a row with
the same columns.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from data.errors import shorten
from data.files.publish import remove_unpublished
from launch.errors import describe
from launch.sample_settings import SamplingConfig
from pipeline.sample.actor import SamplerActor
from pipeline.sample.manifest import Manifest
from pipeline.sample.model import SampledModel
from pipeline.sample.outputs import SampledClip, is_as_listed
from pipeline.sample.plan import Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import PlacedPrompt, PromptError
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import Progress
from pipeline.sample.truncation import truncation_warnings

PLACE = "this request"
MAX_WAITING = 64  # clips; more of them are a matter of a job
MAX_SHOWN = 60  # of the clips that an earlier start made
State = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(eq=False)
class Job:
    """A clip that was asked for."""

    request: PromptRequest
    row: Mapping[str, Any]
    """What was asked for, as a row of a prompts file."""
    warnings: tuple[str, ...] = ()
    progress: Progress | None = None
    """None: no step has been finished."""
    is_stopped: bool = False
    """It is not wanted any more."""
    was_there: bool = False
    """The folder held this clip already."""
    future: "Future[SampledClip]" = field(default_factory=Future)

    @property
    def state(self) -> State:
        """Where it stands."""
        if not self.future.done():
            return "running" if self.future.running() else "waiting"
        if self.future.cancelled() or isinstance(self.future.exception(), CancelledError):
            return "cancelled"
        return "done" if self.future.exception() is None else "failed"

    @property
    def error(self) -> str | None:
        """Why it could not be made; None: it was, or is not finished."""
        error = None if self.state != "failed" else self.future.exception()
        if error is None:
            return None
        return describe(error) or f"{type(error).__name__}: {shorten(' '.join(str(error).split()), 400)}"


class ClipQueue:
    """Makes clips of a model into a folder, one at a time, in the order in which they are asked for.

    Args:
        output_dir: held by `held_folder`.

    Raises:
        ReelflowError: the model cannot be loaded, or the folder's manifest is damaged.
    """

    def __init__(self, model: SampledModel, config: SamplingConfig, output_dir: Path) -> None:
        self.model, self.config, self.folder = model, config, output_dir
        self.sampler, self.outputs = config.sample.sampler(), config.sample.files()
        self.num_threads = config.cluster.workers.cpus_per_worker
        self._prompts = PromptsFile(str(output_dir / "prompts.jsonl"))
        self._lock = threading.RLock()
        remove_unpublished(output_dir)
        self._manifest = Manifest(output_dir)
        earlier = [clip for clip in self._manifest.own_lines() if (output_dir / clip.file).is_file()]
        self.num_earlier = len(earlier)
        self.history: list[SampledClip] = earlier[-MAX_SHOWN:]
        """The clips to show, the newest last."""
        self.jobs: list[Job] = []
        """What waits, runs or failed, the oldest first."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling")
        # in the thread that computes: each thread has a number of threads for products of its own
        self._actor = self._thread.submit(
            SamplerActor, model.folder.resolve(), output_dir.resolve(), self.sampler, self.num_threads, self.outputs
        ).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what waits, and end the clip that is being made after its current step."""
        for job in list(self.jobs):
            self.stop(job)
        with self._manifest:
            self._thread.shutdown(wait=True)

    def submit(self, row: Mapping[str, Any]) -> list[Job]:
        """Plan the clips of a row, and queue them.

        Raises:
            PromptError: it cannot be sampled; `reason` begins with the column.
            ReelflowError: a file that it needs cannot be used.
        """
        prompt = self._prompts.prompt_of_row(PLACE, dict(row))
        if prompt.num_seeds > MAX_WAITING:
            reason = f"num_seeds: {prompt.num_seeds} clips are more than {MAX_WAITING}: sample a prompts file"
            raise PromptError(f"{PLACE}: {reason}", reason)
        placed = [PlacedPrompt(PLACE, prompt)]
        compare = self.config.sample.compare_unguided
        plan = Plan(self.model, self.sampler, placed, self.config.seed, compare, outputs=self.outputs)
        summary = plan.check()
        warnings = [*summary.warnings, *truncation_warnings(self.model, self.sampler, placed, summary.models)]
        jobs = [Job(request, MappingProxyType(dict(row)), tuple(warnings)) for request in plan]
        with self._lock:
            waiting = sum(job.state in ("waiting", "running") for job in self.jobs)
            if waiting + len(jobs) > MAX_WAITING:
                reason = f"{waiting} clips wait already, and {MAX_WAITING} may: wait for some, or sample a prompts file"
                raise PromptError(f"{PLACE}: {reason}", reason)
            for job in jobs:
                self.jobs.append(job)
                job.future = self._thread.submit(self._make, job)
                job.future.add_done_callback(self._ended(job))
        return jobs

    def ahead_of(self, job: Job) -> int:
        """How many clips are made before this one, with the one that is being made."""
        before = self.jobs[: self.jobs.index(job)] if job in self.jobs else []
        return sum(other.state in ("waiting", "running") for other in before)

    def stop(self, job: Job) -> None:
        """Take a clip out of the queue, or end its making after the current step."""
        job.is_stopped = True
        if job.future.cancel() or job.future.done():
            self._drop(job)

    def _ended(self, job: Job) -> "Callable[[Future[SampledClip]], None]":
        def ended(future: "Future[SampledClip]") -> None:
            if job.state == "done":
                clip = future.result()
                self.history = [*(other for other in self.history if other.request.id != clip.request.id), clip]
            if job.state != "failed":
                self._drop(job)

        return ended

    def _drop(self, job: Job) -> None:
        with self._lock:
            self.jobs = [other for other in self.jobs if other is not job]

    def _make(self, job: Job) -> SampledClip:
        def tell(progress: Progress) -> None:
            job.progress = progress
            if job.is_stopped:
                raise CancelledError

        request = job.request
        if (line := self._manifest.line(request.id)) is not None:
            if is_as_listed(self.folder / line.file, line) and not line.lacks(self.folder, self.outputs):
                job.was_there = True
                return line
            self._manifest.forget(request.id)
            self._manifest.rewrite(self._manifest.own_lines())
        (clip,) = self._actor.make([request], tell)
        self._manifest.append([clip])
        return clip
