"""The manifest of a folder of sampled clips, and whether the files that it lists are whole."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from pydantic import JsonValue

from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.files.jsonl import JsonLineError, iterate_jsonl
from data.records import FileName, Record
from pipeline.report.figures import GalleryClip
from pipeline.run.fingerprints import output_settings
from pipeline.sample.requests import PromptRequest

SAMPLES_NAME, FAILED_NAME = "manifest.jsonl", "failed.jsonl"
SEGMENTS = "manifest-*-of-*.jsonl"
_BOXES = {b"ftyp", b"moov", b"mdat"}  # without which an MP4 file cannot be played


class SamplesError(ReelflowError, ValueError):
    """A manifest of sampled clips that cannot be read; the message names the line and the way out."""


class SampledClip(Record):
    """One line of manifest.jsonl."""

    file: FileName  # in the samples folder
    request: PromptRequest
    num_network_calls: int | None  # of the batch that the clip was sampled in; None: its line was lost
    sha256: str | None = None  # of the file; None: its line was written by an older version
    model: str | None = None  # fingerprint of the checkpoint; None: its line was written by an older version

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


def segments(output_dir: Path) -> list[Path]:
    """The files that list the clips of a samples folder: the manifest, and those of jobs on parts of the prompts."""
    return [output_dir / SAMPLES_NAME, *sorted(output_dir.glob(SEGMENTS))]


def iterate_samples(output_dir: Path) -> Iterator[SampledClip]:
    """The clips that a samples folder lists, one at a time and each once; none where there is no manifest.

    A last line without its end, which a job was writing when it was killed, is left out.

    Raises:
        SamplesError: a line is damaged, or names a file outside the folder.
    """
    seen, paths = set[bytes](), [path for path in segments(output_dir) if path.is_file()]
    for path in paths:
        with refused_lines():
            for clip in iterate_jsonl(path, SampledClip, ignore_unfinished=True):
                key = clip.request.id.encode()
                if key not in seen:
                    yield clip
                if len(paths) > 1:
                    seen.add(key)


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
    return path.is_file() and file_sha256(path) == listed.sha256


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
