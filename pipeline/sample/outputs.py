"""The manifest of a folder of sampled clips, and whether the files that it lists are whole."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from pydantic import JsonValue, SerializerFunctionWrapHandler, model_serializer

from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.files.jsonl import JsonLineError, iterate_jsonl
from data.records import FileName, Record
from data.video.config import VideoConfig
from pipeline.report.figures import GalleryClip
from pipeline.run.fingerprints import output_settings
from pipeline.sample.config import OutputFormat, OutputsConfig
from pipeline.sample.requests import PromptRequest

SAMPLES_NAME, FAILED_NAME = "manifest.jsonl", "failed.jsonl"
SEGMENTS = "manifest-*-of-*.jsonl"
CLIP_SUFFIX = ".mp4"
OTHER_SUFFIXES: dict[OutputFormat, str] = {
    "frames": ".frames.zip",
    "gif": ".gif",
    "webp": ".webp",
    "webdataset": ".latent.safetensors",
}
"""Of the files beside a clip's MP4 file, by format; shards are made of the MP4 files and of those with latents."""
ADDED = ("num_bytes", "model_folder", "video", "others")
_BOXES = {b"ftyp", b"moov", b"mdat"}  # without which an MP4 file cannot be played


class SamplesError(ReelflowError, ValueError):
    """A manifest of sampled clips that cannot be read; the message names the line and the way out."""


class OutputFile(Record):
    """A file of a clip beside its MP4 file."""

    kind: OutputFormat
    file: FileName  # in the samples folder
    num_bytes: int
    sha256: str
    side: int | None = None  # of animated pictures: `preview_side`


class SampledClip(Record):
    """One line of manifest.jsonl."""

    file: FileName  # in the samples folder
    request: PromptRequest
    num_network_calls: int | None  # of the batch that the clip was sampled in; None: its line was lost
    sha256: str | None = None  # of the file; None: its line was written by an older version
    model: str | None = None  # fingerprint of the checkpoint; None: its line was written by an older version
    num_bytes: int | None = None  # of the file; this and what follows is left out by older versions
    model_folder: str | None = None  # where the checkpoint was
    video: VideoConfig | None = None  # how the file is compressed; None: as older versions did, without a record in it
    others: tuple[OutputFile, ...] = ()

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name not in ADDED or value}

    def lacks(self, folder: Path, config: OutputsConfig) -> bool:
        """Whether a file that is asked for is missing, damaged, or was written with other settings.

        Reads the other files whole, and not the MP4 file: see `is_as_listed`.
        """
        if (self.video or VideoConfig()).resolved() != config.video.resolved():
            return True
        listed = {other.kind: other for other in self.others}
        for kind in config.outputs:
            if kind == "mp4":
                continue
            other = listed.get(kind)
            if other is None or other.side not in (None, config.preview_side):
                return True
            path = folder / other.file
            if not path.is_file() or path.stat().st_size != other.num_bytes or file_sha256(path) != other.sha256:
                return True
        return False

    @property
    def latent(self) -> OutputFile | None:
        """The file with its latent, if there is one."""
        return next((other for other in self.others if other.kind == "webdataset"), None)

    def shown(self, right: bool | None = None, scores: Mapping[str, float] = MappingProxyType({})) -> GalleryClip:
        """The clip as pages show it.

        Args:
            right: the judge's verdict, where there is one.
            scores: what was measured of it, by name.
        """
        request = self.request
        given = request.model_dump(mode="json", include={"image", "given", "weaker", "metadata"})
        known = {"checkpoint": self.model, "network calls": self.num_network_calls, "sha256": self.sha256, **given}
        return GalleryClip(
            self.file,
            request.prompt,
            request.seed,
            request.guidance_scale,
            right=right,
            bucket=request.bucket,
            settings={} if request.settings is None else output_settings(request.settings),
            provenance={name: _as_text(_without_folders(value)) for name, value in known.items() if value is not None},
            scores=scores,
        )


def _without_folders(value: JsonValue) -> JsonValue:
    """The value with names of files in place of their paths: pages are shared, and must not show a machine's."""
    if isinstance(value, dict):
        known = {name: inner for name, inner in value.items() if name != "folder"}
        return {
            name: Path(inner).name if name == "path" and isinstance(inner, str) else _without_folders(inner)
            for name, inner in known.items()
        }
    return [_without_folders(inner) for inner in value] if isinstance(value, list) else value


def _as_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class FailedClip(Record):
    """One line of failed.jsonl: a request, or a row of which none could be made."""

    request: PromptRequest | None = None
    row: str | None = None  # where it stands; None: a request failed
    reason: str


def other_name(clip_file: str, kind: OutputFormat) -> str:
    """The name of a file beside a clip's MP4 file."""
    return clip_file.removesuffix(CLIP_SUFFIX) + OTHER_SUFFIXES[kind]


def segments(output_dir: Path) -> list[Path]:
    """The files that list the clips of a samples folder: the manifest, and those of jobs on parts of the prompts."""
    return [output_dir / SAMPLES_NAME, *sorted(output_dir.glob(SEGMENTS))]


def iterate_samples(output_dir: Path) -> Iterator[SampledClip]:
    """The clips that a samples folder lists, one at a time and each once; none where there is no manifest.

    Of a clip with a line of a shard, that one counts: it is newer than one in the manifest.

    A last line without its end, which a job was writing when it was killed, is left out.

    Raises:
        SamplesError: a line is damaged, or names a file outside the folder.
    """
    paths = [path for path in segments(output_dir) if path.is_file()]
    if len(paths) < 2:
        for path in paths:
            yield from _lines_of(path)
        return
    newer, seen = set[bytes](), set[bytes]()
    for path in paths:
        if path.name != SAMPLES_NAME:
            newer.update(clip.request.id.encode() for clip in _lines_of(path))
    for path in paths:
        skipped = newer if path.name == SAMPLES_NAME else seen
        for clip in _lines_of(path):
            if (key := clip.request.id.encode()) not in skipped and key not in seen:
                yield clip
                seen.add(key)


def _lines_of(path: Path) -> Iterator[SampledClip]:
    with refused_lines():
        yield from iterate_jsonl(path, SampledClip, ignore_unfinished=True)


def read_samples(output_dir: Path) -> list[SampledClip]:
    """The clips of `iterate_samples`, all at once."""
    return list(iterate_samples(output_dir))


@contextmanager
def refused_lines() -> Iterator[None]:
    """Give damaged lines of a manifest a message with the way out.

    Raises:
        SamplesError: in place of a JsonLineError.
    """
    try:
        yield
    except JsonLineError as error:
        raise SamplesError(
            f"{error}; correct that line, or delete it and sample again: clips of the prompts and settings that are "
            "sampled then are listed anew, and not made again; others stay in the folder, but without a line"
        ) from error


def is_as_listed(path: Path, listed: SampledClip | None) -> bool:
    """Whether a file is the clip that its line describes; without a line, whether it is a whole clip."""
    if listed is None or listed.sha256 is None:
        return is_whole_clip(path)
    if not path.is_file() or listed.num_bytes not in (None, path.stat().st_size):
        return False
    return file_sha256(path) == listed.sha256


def is_whole_clip(path: Path) -> bool:
    """Whether a file is an MP4 file of full length: its parts (boxes) fill it exactly, and none is missing."""
    if not path.is_file():
        return False
    size, position, found = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            kind, length = _box(file)
            if length < 8:
                return False
            found.add(kind)
            position += length
    return position == size and found >= _BOXES


def _box(file: BinaryIO) -> tuple[bytes, int]:
    """The kind and the length in bytes of the box that begins here; length 0 where its header is cut short."""
    header = file.read(16)
    length = int.from_bytes(header[:4], "big")
    if length == 1 and len(header) == 16:  # a length of 64 bits follows the kind
        length = int.from_bytes(header[8:], "big")
    return header[4:8], length if len(header) >= 8 else 0
