"""Sets of clips that can be measured: a dataset of clips, or a folder of sampled clips."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from data.dataset.clip import Split
from data.dataset.index import IndexRow, read_index
from data.dataset.manifest import MANIFEST_NAME, read_manifest
from data.dataset.reader import PayloadReader
from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.records import Frames, Runtime
from data.video.codec import decode_clip
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples
from pipeline.sample.requests import PromptRequest, start_of

SETTINGS = {name for name, field in SampleConfig.model_fields.items() if Runtime not in field.metadata}
"""Of sampling, those that decide the pixels."""


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
    """Equal for sampled clips of one prompt, seed and shape, to which the same was given; empty in a dataset."""
    expect: Mapping[str, str] | None = None
    """What the judge of drawn shapes should find, where that is known."""


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

    def path(self, number: int) -> Path:
        """The file that a clip is in."""
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

    def path(self, number: int) -> Path:
        """As `ClipSet.path`."""
        return self.folder / self.rows[number].shard

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
            ClipName(clip.file, clip.request.prompt, _pair(clip.request), clip.request.expect) for clip in self.clips
        ]

    @property
    def fingerprint(self) -> str:
        """As `ClipSet.fingerprint`; reads every file."""
        files = (self.folder / clip.file for clip in self.clips)
        return _digest(*(f"{path.name} {file_sha256(path) if path.is_file() else 'missing'}" for path in files))

    def path(self, number: int) -> Path:
        """As `ClipSet.path`."""
        return self.folder / self.clips[number].file

    def read(self, number: int) -> Frames:
        """As `ClipSet.read`."""
        return decode_clip(self.path(number).read_bytes())


def open_clips(
    folder: Path, limit: int, split: Split | None, where: Mapping[str, JsonValue] = MappingProxyType({})
) -> ClipSet:
    """The clips of a folder, at most `limit` of them.

    Args:
        split: of a dataset; None: all clips.
        where: of sampled clips, those with these values of `guidance_scale`, `bucket`, `model` or another setting.

    Raises:
        ClipSetError: it holds no clips, or several of one prompt and seed, of which `where` names none.
        DatasetError: the dataset is unfinished or damaged.
        SamplesError: the manifest of sampled clips is damaged.
    """
    if (folder / SAMPLES_NAME).is_file():
        if split is not None:
            raise ClipSetError(f"{folder} holds sampled clips, which have no splits; leave --split out")
        return sampled_clips(folder, _chosen(folder, where), limit)
    if not (folder / MANIFEST_NAME).is_file():
        raise ClipSetError(
            f"{folder} holds neither a finished dataset nor sampled clips; name a folder such as runs/NAME/clips or "
            "runs/NAME/samples"
        )
    if where:
        raise ClipSetError(f"{folder} holds a dataset, whose clips have no {', '.join(where)}: leave that out")
    manifest = read_manifest(folder)
    if manifest.kind != "clips":
        raise ClipSetError(f"{folder} holds {manifest.kind}, and clips are compared; name the folder runs/NAME/clips")
    index = read_index(folder, split)
    if not len(index):
        raise ClipSetError(f"{folder} has no clips" + (f" of the split {split}" if split else ""))
    rows = index.take(index.order("source")[_even_numbers(len(index), limit)])
    return DatasetClips(folder, rows, manifest.fingerprint)


def sampled_clips(folder: Path, clips: Iterable[SampledClip], limit: int) -> SampledClips:
    """Some of the clips of a folder, in the order of `SampledClips`, at most `limit` of them."""
    found, repeats = [], Counter[str]()
    for clip in sorted(clips, key=lambda clip: (clip.request.prompt, clip.request.seed, clip.file)):
        found.append((repeats[clip.request.prompt], clip))
        repeats[clip.request.prompt] += 1
    ordered = [clip for _, clip in sorted(found, key=lambda each: each[0])]  # stable: by prompt within each round
    return SampledClips(folder, [ordered[number] for number in _even_numbers(len(ordered), limit)])


def settings_of(clip: SampledClip) -> dict[str, JsonValue]:
    """What a clip was sampled with, by name: settings that decide pixels, and fingerprints of its checkpoints."""
    request = clip.request
    settings = {} if request.settings is None else request.settings.model_dump(mode="json", include=SETTINGS)
    weaker = {} if request.weaker is None else {"guidance_model": request.weaker.fingerprint}
    return settings | weaker | {"guidance_scale": request.guidance_scale, "bucket": request.bucket, "model": clip.model}


def values_of(clips: Iterable[SampledClip]) -> dict[str, list[JsonValue]]:
    """The values that clips have of each setting, each once, in their order."""
    found: dict[str, list[JsonValue]] = {}
    for settings in map(settings_of, clips):
        for name, value in settings.items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    return found


def _chosen(folder: Path, where: Mapping[str, JsonValue]) -> list[SampledClip]:
    """The clips that `where` names.

    Raises:
        ClipSetError: there is none, or several of one prompt and seed.
    """
    clips = read_samples(folder)
    if not clips:
        raise ClipSetError(f"{folder} holds no clips")
    for name, value in where.items():
        known = values_of(clips)
        if name not in known:
            raise ClipSetError(f"{folder} holds no clips that say their {name}; known are {', '.join(known)}")
        if value not in known[name]:
            raise ClipSetError(f"{folder} holds no clips of {name} {_told(value)}, but of {_all_told(known[name])}")
        clips = [clip for clip in clips if settings_of(clip).get(name) == value]
    groups: dict[str, list[SampledClip]] = {}
    for clip in clips:
        groups.setdefault(_pair(clip.request), []).append(clip)
    differing: dict[str, list[JsonValue]] = {}
    for group in groups.values():
        for name, values in values_of(group).items() if len(group) > 1 else ():
            if len(values) > 1:
                known = differing.setdefault(name, [])
                known += [value for value in values if value not in known]
    if differing:
        told = ", ".join(f"{name} ({_all_told(values)})" for name, values in differing.items())
        raise ClipSetError(
            f"{folder} holds several clips of one prompt and seed, which differ in {told}: name those to compare, with "
            + " and ".join(f"--where {name}=VALUE" for name in differing)
        )
    return clips


def _pair(request: PromptRequest) -> str:
    return f"{request.prompt}\0{request.seed}\0{request.bucket}{start_of(request.image, request.given)}"


def _told(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _all_told(values: Sequence[JsonValue]) -> str:
    return ", ".join(sorted(map(_told, values)))


def _even_numbers(length: int, limit: int) -> np.ndarray:
    """At most `limit` of the numbers below `length`, evenly spaced."""
    return np.arange(length) if length <= limit else np.arange(limit) * length // limit


def _digest(*parts: str) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:20]
