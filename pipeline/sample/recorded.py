"""What is recorded of a sampled clip, in its own file and in the manifest beside it, to make it again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.files.jsonl import parse_line
from data.video.config import VideoConfig
from pipeline.sample.given import CLIPS, IMAGES, Given, ImageFile
from pipeline.sample.outputs import CLIP_SUFFIX, SampledClip, refused_lines, segments
from pipeline.sample.provenance import read_provenance, without_places
from pipeline.sample.requests import PromptRequest
from pipeline.sample.reuse import id_in


class RemakeError(ReelflowError, ValueError):
    """A clip that cannot be made again; the message says why, and what to name."""


@dataclass(frozen=True)
class RecordedClip:
    """A clip that may be made again."""

    file: Path
    """Its MP4 file, which may be missing where a line of a manifest was read."""
    request: PromptRequest
    """The paths of its files are those of the manifest, and empty where there is none."""
    fingerprint: str
    """Of the checkpoint."""
    checkpoint_name: str
    video: VideoConfig | None
    """How it is compressed; None: as older versions did, without a record in the file."""
    model_folder: Path | None
    """Where the checkpoint was."""
    line: SampledClip | None
    """Of the manifest, if there is one."""


def read_clip(path: Path) -> RecordedClip:
    """What a clip's file says, completed by what a manifest beside it says of places.

    Raises:
        ProvenanceError: the file does not say how it was made.
        SamplesError: the line of the manifest is damaged.
    """
    made = read_provenance(path)
    made = made.model_copy(update={"request": without_places(made.request)})  # whatever somebody wrote into the file
    clip = RecordedClip(path, made.request, made.checkpoint.fingerprint, made.checkpoint.name, made.video, None, None)
    for line in _lines_with(path.parent, made.request.id):
        if line.request.id == made.request.id and line.model == made.checkpoint.fingerprint:
            folder = None if line.model_folder is None else Path(line.model_folder)
            request = _placed(made.request, _places(line.request))
            if (weaker := line.request.weaker) is not None and request.weaker is not None:
                request = request.model_copy(update={"weaker": weaker})
            return replace(clip, request=request, model_folder=folder, line=line)
    return clip


def read_line(manifest: Path, name: str) -> RecordedClip:
    """What a line of a manifest says of a clip.

    Args:
        name: of the clip's file, with or without its suffix, or its id.

    Raises:
        RemakeError: there is no such file or line, or an older version wrote it.
        SamplesError: the line is damaged.
    """
    if not manifest.is_file():
        raise RemakeError(f"{manifest}: there is no such manifest; name a file such as clips/manifest.jsonl")
    wanted = name.removesuffix(CLIP_SUFFIX)
    for line in _lines_in(manifest, wanted):
        if wanted in (line.file.removesuffix(CLIP_SUFFIX), id_in(line.file)):
            if line.request.settings is None or line.model is None:
                raise RemakeError(
                    f"{manifest}: the line of {line.file} was written by an older version, which did not store all "
                    "settings; sample its prompts file with the same checkpoint and settings again"
                )
            folder = None if line.model_folder is None else Path(line.model_folder)
            file = manifest.parent / line.file
            return RecordedClip(file, line.request, line.model, "checkpoint", line.video, folder, line)
    raise RemakeError(f"{manifest} has no line of a clip {name!r}; give the name of its file, or its id")


def with_inputs(clip: RecordedClip, inputs: Mapping[str, Path]) -> RecordedClip:
    """The clip with all files that it is made from, which are there and hold what they did.

    Args:
        inputs: files that the user named, by SHA-256. They go before those of the manifest.

    Raises:
        RemakeError: a file is missing or has changed.
    """
    named = {digest: str(path) for digest, path in inputs.items()}
    request = _placed(clip.request, _places(clip.request) | named)
    for column, file in files_of(request).items():
        was = f"{clip.file} was made with a file in the column {column} whose SHA-256 is {file.sha256}"
        if not file.path:
            raise RemakeError(f"{was}, and no manifest says where that is; name it with --input FILE")
        try:
            found = file_sha256(Path(file.path))
        except OSError as error:
            raise RemakeError(
                f"{was}; it was {file.path}, which cannot be read ({error.strerror}); name it with --input FILE"
            ) from error
        if found != file.sha256:
            raise RemakeError(
                f"{was}; {file.path} has changed since (its SHA-256 is {found}); name a copy of what it was with "
                "--input FILE"
            )
    return replace(clip, request=request)


def files_of(request: PromptRequest) -> dict[str, ImageFile]:
    """The files that a request is given, by column."""
    given = request.given or Given()
    files = {name: getattr(given, name) for name in (*IMAGES, *CLIPS) if name != "image"} | {"image": request.image}
    return {name: file for name, file in files.items() if file is not None}


def _places(request: PromptRequest) -> dict[str, str]:
    """The paths of a request's files, by SHA-256."""
    return {file.sha256: file.path for file in files_of(request).values() if file.path}


def _placed(request: PromptRequest, places: Mapping[str, str]) -> PromptRequest:
    """A request whose files are at these places."""
    files = {
        name: file.model_copy(update={"path": places.get(file.sha256, "")}) for name, file in files_of(request).items()
    }
    image = files.pop("image", None)
    given = None if request.given is None else request.given.model_copy(update=files)
    return request.model_copy(update={"image": image, "given": given})


def _lines_with(folder: Path, text: str) -> Iterator[SampledClip]:
    for path in segments(folder):
        if path.is_file():
            yield from _lines_in(path, text)


def _lines_in(path: Path, text: str) -> Iterator[SampledClip]:
    """The lines that contain a text; the others are not parsed."""
    wanted = text.encode()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if wanted in line and line.endswith(b"\n"):
                with refused_lines():
                    yield parse_line(path, number, line.removesuffix(b"\n"), SampledClip)
