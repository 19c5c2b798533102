"""Measure every clip of a set on Ray actors: features, statistics, similarity to its text.

What was measured is kept in a file whose name is the fingerprint of the clips and of the networks, so a set that is
compared with many others is measured once.
"""

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import ray
import torch
from jaxtyping import Float, Int

from data.errors import DatasetError, VideoError
from data.files.publish import published
from pipeline.distributed.actor_pool import results_of_actors
from pipeline.distributed.config import WorkersConfig
from pipeline.evaluate.clip_sets import ClipSet
from pipeline.evaluate.features import FeatureNetwork, pixels_of, random_convolutions, read_features
from pipeline.evaluate.statistics import measure_clip
from pipeline.evaluate.text_similarity import TextSimilarity, similarity_fingerprint
from pipeline.run.fingerprints import fingerprint
from pipeline.run.progress import bar

logger = logging.getLogger(__name__)

VERSION = 1  # of what is measured; part of the fingerprint
CLIPS_PER_JOB = 8
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

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The clips of all parts."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


class Measurer:
    """A Ray actor that holds the networks."""

    def __init__(self, clips: ClipSet, networks: Networks, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._clips, self._names, self._device = clips, clips.names, device
        self._for_clips, self._for_frames = networks.for_clips(device), networks.for_frames(device)
        folder = networks.text_similarity
        self._similarity = None if folder is None else TextSimilarity(folder, device)

    @torch.inference_mode()
    def measure(self, numbers: Sequence[int]) -> tuple[Measured | None, list[str]]:
        """Measure some clips; returns what was measured, and why others could not be read."""
        found, problems = [], []
        for number in numbers:
            try:
                frames = self._clips.read(number)
            except (DatasetError, OSError, VideoError) as error:
                problems.append(f"{self._names[number].key}: {error}")
                continue
            pixels = pixels_of(torch.from_numpy(np.ascontiguousarray(frames))).to(self._device)
            chosen = torch.linspace(0, len(frames) - 1, FRAMES_PER_CLIP).round().long()
            found.append(
                Measured(
                    numbers=np.array([number]),
                    features=self._for_clips.compute(pixels).cpu().numpy(),
                    frame_features=self._for_frames.compute(pixels[0, :, chosen].transpose(0, 1)).cpu().numpy()[None],
                    statistics=np.array([astuple(measure_clip(frames))]),
                    similarity=np.array([self._score(frames, number)]),
                )
            )
        return (Measured.joined(found) if found else None), problems

    def _score(self, frames: Any, number: int) -> float:  # noqa: ANN401 - Frames
        return float("nan") if self._similarity is None else self._similarity.score(frames, self._names[number].text)


def measure_clips(clips: ClipSet, networks: Networks, cache_dir: Path, workers: WorkersConfig) -> Measured:
    """Measure a set, or read what was measured before, on the connected Ray cluster. Unreadable clips are left out.

    Raises:
        FeatureError: a network cannot be used.
        VideoError: no clip of the set can be read.
    """
    path = cache_dir / f"{fingerprint([clips.fingerprint, networks.fingerprint()])}.npz"
    if (known := _read(path)) is not None:
        return known
    jobs = [range(at, min(at + CLIPS_PER_JOB, len(clips.names))) for at in range(0, len(clips.names), CLIPS_PER_JOB)]
    actor: Any = ray.remote(Measurer).options(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
    parts: dict[int, Measured] = {}
    problems: list[str] = []
    with (
        bar("measure", len(clips.names), "clips") as progress,
        results_of_actors(
            partial(actor.remote, clips, networks, workers.cpus_per_worker),
            lambda measurer, numbers: measurer.measure.remote(numbers),
            jobs,
            workers.num_startable(),
        ) as results,
    ):
        num_done = 0
        for numbers, (measured, unreadable) in results:
            if measured is not None:
                parts[numbers[0]] = measured
            problems += unreadable
            num_done += len(numbers)
            progress.update(num_done)
    if problems:
        logger.warning(
            "  warning: %s: %d of %d clips cannot be read and are left out; the first is %s",
            clips.folder,
            len(problems),
            len(clips.names),
            problems[0],
        )
    if not parts:
        raise VideoError("undecodable", f"{clips.folder}: no clip can be read; the first is {problems[0]}")
    whole = Measured.joined([parts[key] for key in sorted(parts)])
    if not problems:  # else the next start tries again
        with published(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **vars(whole))
    return whole


def _read(path: Path) -> Measured | None:
    """What an earlier start measured; None where there is nothing, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return Measured(**file)
    except (FileNotFoundError, BadZipFile, EOFError, ValueError, TypeError):
        return None
