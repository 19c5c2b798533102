"""Measure every clip of a set on Ray actors: features, statistics, similarity to its text.

What was measured is kept in a file whose name is the fingerprint of the clips and of the networks, so a set that is
compared with many others is measured once.
"""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import ray
import torch
from einops import rearrange
from jaxtyping import Float, Int

from data.errors import DatasetError, VideoError
from data.files.publish import published
from data.records import Frames
from data.synthetic import Combination
from pipeline.distributed.actor_pool import results_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.evaluate.clip_sets import ClipName, ClipSet
from pipeline.evaluate.features import FeatureNetwork, pixels_of, random_convolutions, read_features
from pipeline.evaluate.judge import judge_clip
from pipeline.evaluate.statistics import measure_clip
from pipeline.evaluate.text_similarity import TextSimilarity, similarity_fingerprint
from pipeline.report.figures import ATTRIBUTES
from pipeline.run.fingerprints import fingerprint
from pipeline.run.precision import prepare_to_compute
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, ReadFiles

logger = logging.getLogger(__name__)

VERSION = 2  # of what is measured; part of the fingerprint
CLIPS_PER_JOB = 8
EXPECTED = {field.name for field in fields(Combination)}
FRAMES_PER_CLIP = 4  # evenly spaced frames whose features are compared


@dataclass(frozen=True)
class Networks:
    """What clips are measured with, beside their pixels."""

    clip_features: Path | None = None
    """TorchScript of a network for clips; None: random convolutions."""
    frame_features: Path | None = None
    """TorchScript of a network for frames; None: random convolutions."""
    text_similarity: Path | None = None
    """Folder of a CLIP model; None: the similarity to the text is not measured."""

    def for_clips(self, device: torch.device) -> FeatureNetwork:
        """The network for clips."""
        return (
            random_convolutions(3, device)
            if self.clip_features is None
            else read_features(self.clip_features, 3, device)
        )

    def for_frames(self, device: torch.device) -> FeatureNetwork:
        """The network for frames."""
        if self.frame_features is None:
            return random_convolutions(2, device)
        return read_features(self.frame_features, 2, device)

    def check(self) -> list[str]:
        """Load each once, so that one that cannot be used is refused before Ray starts; returns their names.

        Raises:
            FeatureError: one of them cannot be used.
        """
        cpu = torch.device("cpu")
        if self.text_similarity is not None:
            TextSimilarity(self.text_similarity, cpu)
        return [self.for_clips(cpu).name, self.for_frames(cpu).name]

    def fingerprint(self) -> str:
        """Changes with any of the networks.

        Raises:
            FeatureError: one of them cannot be used.
        """
        cpu = torch.device("cpu")
        similarity = None if self.text_similarity is None else similarity_fingerprint(self.text_similarity)
        return fingerprint([VERSION, self.for_clips(cpu).fingerprint, self.for_frames(cpu).fingerprint, similarity])


@dataclass(frozen=True)
class Measured:
    """The clips of a set that could be read, in its order."""

    numbers: Int[np.ndarray, " n"]
    """Of the clips in the set."""
    features: Float[np.ndarray, "n d"]
    frame_features: Float[np.ndarray, "n f d"]
    statistics: Float[np.ndarray, "n k"]
    """In the order of `statistics.STATISTICS`."""
    similarity: Float[np.ndarray, " n"]
    """To the text; NaN where it was not measured."""
    right: Float[np.ndarray, "n a"]
    """Whether the judge of drawn shapes found each of `figures.ATTRIBUTES`, 1 or 0; NaN where it was not asked."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The clips of all parts."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True)
class Job:
    """Some clips of a set."""

    number: int
    """Of the set."""
    clips: range


class Measurer:
    """A Ray actor that holds the networks."""

    def __init__(
        self, sets: Sequence[ClipSet], networks: Networks, num_threads: int, files: ReadFiles = SHARED
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        prepare_to_compute(device, num_threads)
        self._sets, self._files, self._device = sets, files, device
        self._for_clips, self._for_frames = networks.for_clips(device), networks.for_frames(device)
        folder = networks.text_similarity
        self._similarity = None if folder is None else TextSimilarity(folder, device)

    @torch.inference_mode()
    def measure(self, job: Job) -> tuple[list[Measured], list[str]]:
        """Measure some clips; returns what was measured of each, and why others could not be read."""
        clips, found, problems = self._sets[job.number], [], []
        names = clips.names
        self._files.fetch(*dict.fromkeys(clips.path(number) for number in job.clips))
        for number in job.clips:
            try:
                frames = clips.read(number)
            except (DatasetError, OSError, VideoError) as error:
                problems.append(f"{names[number].key}: {error}")
                continue
            found.append(self._measure_clip(number, frames, names[number]))
        return found, problems

    def _measure_clip(self, number: int, frames: Frames, name: ClipName) -> Measured:
        pixels = pixels_of(torch.from_numpy(np.ascontiguousarray(frames))).to(self._device)
        chosen = torch.linspace(0, len(frames) - 1, FRAMES_PER_CLIP).round().long()
        pictures = rearrange(pixels[0, :, chosen], "c f h w -> f c h w")
        return Measured(
            numbers=np.array([number]),
            features=self._for_clips.compute(pixels).cpu().numpy(),
            frame_features=self._for_frames.compute(pictures).cpu().numpy()[None],
            statistics=np.array([astuple(measure_clip(frames))]),
            similarity=np.array([np.nan if self._similarity is None else self._similarity.score(frames, name.text)]),
            right=np.array([_verdicts(frames, name)]),
        )


def _verdicts(frames: Frames, name: ClipName) -> list[float]:
    """What the judge of drawn shapes says of a clip whose text it can check."""
    if name.expect is None or set(name.expect) != EXPECTED:
        return [np.nan] * len(ATTRIBUTES)
    agrees = judge_clip(frames).agrees(Combination(**name.expect))
    return [float(agrees[attribute]) for attribute in ATTRIBUTES]


def measure_sets(
    sets: Sequence[ClipSet], networks: Networks, cache_dir: Path, workers: WorkersConfig, files: ReadFiles = SHARED
) -> list[Measured]:
    """Measure sets, or read what was measured before, on the connected Ray cluster. Unreadable clips are left out.

    Args:
        files: by which workers on other machines get the clips.

    Raises:
        FeatureError: a network cannot be used.
        VideoError: no clip of a set can be read.
    """
    of_networks = networks.fingerprint()
    paths = [cache_dir / f"{fingerprint([clips.fingerprint, of_networks])}.npz" for clips in sets]
    found = {number: known for number, path in enumerate(paths) if (known := _read(path)) is not None}
    jobs = [
        Job(number, range(at, min(at + CLIPS_PER_JOB, len(clips.names))))
        for number, clips in enumerate(sets)
        if number not in found
        for at in range(0, len(clips.names), CLIPS_PER_JOB)
    ]
    outcomes = _measure(sets, networks, jobs, workers, files) if jobs else {}
    for number in {job.number for job in jobs}:
        mine = [outcomes[job] for job in jobs if job.number == number]
        parts = [measured for each, _ in mine for measured in each]
        problems = [problem for _, each in mine for problem in each]
        _tell(sets[number], problems, len(parts))
        found[number] = Measured.joined(parts)
        if not problems:  # else the next start tries again
            with published(paths[number]) as temporary, temporary.open("wb") as file:
                np.savez(file, **vars(found[number]))
    return [found[number] for number in range(len(sets))]


def _measure(
    sets: Sequence[ClipSet], networks: Networks, jobs: Sequence[Job], workers: WorkersConfig, files: ReadFiles
) -> dict[Job, tuple[list[Measured], list[str]]]:
    actor: Any = ray.remote(Measurer).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
    outcomes = {}
    num_clips, num_done = sum(len(job.clips) for job in jobs), 0
    with (
        bar("measure", num_clips, "clips") as progress,
        results_of_actors(
            partial(actor.remote, sets, networks, workers.cpus_per_worker, files),
            lambda measurer, job: measurer.measure.remote(job),
            jobs,
            workers.num_startable(),
        ) as results,
    ):
        for job, outcome in results:
            outcomes[job] = outcome
            num_done += len(job.clips)
            progress.update(num_done)
    return outcomes


def _tell(clips: ClipSet, problems: Sequence[str], num_measured: int) -> None:
    """Warn of clips that cannot be read.

    Raises:
        VideoError: none can be read.
    """
    if not num_measured:
        raise VideoError("undecodable", f"{clips.folder}: no clip can be read; the first is {problems[0]}")
    if problems:
        logger.warning(
            "  warning: %s: %d of %d clips cannot be read and are left out; the first is %s",
            clips.folder,
            len(problems),
            len(clips.names),
            problems[0],
        )


def _read(path: Path) -> Measured | None:
    """What an earlier start measured; None where there is nothing, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Measured(**file)
    except (FileNotFoundError, BadZipFile, EOFError, ValueError, TypeError):
        return None
