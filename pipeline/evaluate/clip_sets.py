"""Sets of clips that can be measured: a dataset of clips, or a folder of sampled clips."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from data.dataset.clip import Split
from data.dataset.index import IndexRow, read_index
from data.dataset.manifest import MANIFEST_NAME, read_manifest
from data.dataset.reader import PayloadReader
from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.records import Frames
from data.video.codec import decode_clip
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples


class ClipSetError(ReelflowError, ValueError):
    """A folder whose clips cannot be compared."""


@dataclass(frozen=True)
class ClipName:
    """A clip of a set, before it is read."""

    key: str
    """Of a dataset the key of the sample, of sampled clips the name of the file."""
    text: str
    """Caption or prompt."""
    pair: str
    """Equal for sampled clips of one prompt and seed; empty in a dataset."""


class ClipSet(Protocol):
    """Clips in a fixed order, of which the jackknife leaves out neighbours together. Pickled to the actors.

    Videos are a sample of all there could be, so clips of one video follow one another. Prompts are given, and only the
    noise is random, so neighbours are samples of different prompts.
    """

    @property
    def folder(self) -> Path:
        """Where they are."""
        ...

    @property
    def names(self) -> Sequence[ClipName]:
        """The clips."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with the contents of any clip, and with which clips are chosen."""
        ...

    def read(self, number: int) -> Frames:
        """The frames of a clip.

        Raises:
            DatasetError: the shard is damaged.
            OSError: the file cannot be read.
            VideoError: the clip is no video.
        """
        ...


@dataclass(frozen=True)
class DatasetClips:
    """Clips of a dataset, evenly chosen in the order of their sources."""

    folder: Path
    rows: Sequence[IndexRow]
    content: str

    @property
    def names(self) -> Sequence[ClipName]:
        """As `ClipSet.names`."""
        return [ClipName(row.key, row.caption, "") for row in self.rows]

    @property
    def fingerprint(self) -> str:
        """As `ClipSet.fingerprint`."""
        return _digest(self.content, *(row.key for row in self.rows))

    def read(self, number: int) -> Frames:
        """As `ClipSet.read`."""
        return decode_clip(PayloadReader(self.folder, verify=True).read(self.rows[number]))


@dataclass(frozen=True)
class SampledClips:
    """Clips that were sampled: the first of each prompt, then the second of each, and so on."""

    folder: Path
    clips: Sequence[SampledClip]

    @property
    def names(self) -> Sequence[ClipName]:
        """As `ClipSet.names`."""
        return [
            ClipName(clip.file, clip.request.prompt, f"{clip.request.prompt}\0{clip.request.seed}")
            for clip in self.clips
        ]

    @property
    def fingerprint(self) -> str:
        """As `ClipSet.fingerprint`; reads every file."""
        files = (self.folder / clip.file for clip in self.clips)
        return _digest(*(f"{path.name} {file_sha256(path) if path.is_file() else 'missing'}" for path in files))

    def read(self, number: int) -> Frames:
        """As `ClipSet.read`."""
        return decode_clip((self.folder / self.clips[number].file).read_bytes())


def open_clips(folder: Path, limit: int, split: Split | None, guidance_scale: float | None) -> ClipSet:
    """The clips of a folder, at most `limit` of them.

    Args:
        split: of a dataset; None: all clips.
        guidance_scale: of sampled clips; None: all, where they have one scale.

    Raises:
        ClipSetError: it holds no clips, or clips of several scales of which none is named.
        DatasetError: the dataset is unfinished or damaged.
        SamplesError: the manifest of sampled clips is damaged.
    """
    if (folder / SAMPLES_NAME).is_file():
        if split is not None:
            raise ClipSetError(f"{folder} holds sampled clips, which have no splits; leave --split out")
        return SampledClips(folder, _evenly(_of_scale(folder, guidance_scale), limit))
    if not (folder / MANIFEST_NAME).is_file():
        raise ClipSetError(
            f"{folder} holds neither a finished dataset nor sampled clips; name a folder such as runs/NAME/clips or "
            "runs/NAME/samples"
        )
    manifest = read_manifest(folder)
    if manifest.kind != "clips":
        raise ClipSetError(f"{folder} holds {manifest.kind}, and clips are compared; name the folder runs/NAME/clips")
    index = read_index(folder, split)
    if not len(index):
        raise ClipSetError(f"{folder} has no clips" + (f" of the split {split}" if split else ""))
    rows = index.take(index.order("source")[_even_numbers(len(index), limit)])
    return DatasetClips(folder, rows, manifest.fingerprint)


def _of_scale(folder: Path, guidance_scale: float | None) -> list[SampledClip]:
    clips = read_samples(folder)
    scales = sorted({clip.request.guidance_scale for clip in clips})
    known = ", ".join(f"{scale:g}" for scale in scales)
    if guidance_scale is None and len(scales) > 1:
        raise ClipSetError(f"{folder} holds clips of the guidance scales {known}; name one with --guidance-scale")
    chosen = [clip for clip in clips if guidance_scale in (None, clip.request.guidance_scale)]
    if not chosen:
        wanted = f" of guidance scale {guidance_scale:g}, but of {known}" if scales else ""
        raise ClipSetError(f"{folder} holds no clips{wanted}")
    found, repeats = [], Counter[str]()
    for clip in sorted(chosen, key=lambda clip: (clip.request.prompt, clip.request.seed, clip.file)):
        found.append((repeats[clip.request.prompt], clip))
        repeats[clip.request.prompt] += 1
    return [clip for _, clip in sorted(found, key=lambda each: each[0])]  # stable: by prompt within each round


def _evenly(clips: list[SampledClip], limit: int) -> list[SampledClip]:
    return [clips[number] for number in _even_numbers(len(clips), limit)]


def _even_numbers(length: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers below `length`, evenly spaced."""
    return np.arange(length) if length <= limit else np.arange(limit) * length // limit


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:20]
