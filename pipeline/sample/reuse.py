"""Which clips of a samples folder can be kept: those that are what their lines say."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.files.checksums import file_sha256
from pipeline.sample.config import MP4_ALONE, OutputsConfig
from pipeline.sample.manifest import Manifest
from pipeline.sample.outputs import CLIP_SUFFIX, SAMPLES_NAME, SampledClip, is_as_listed
from pipeline.sample.provenance import ProvenanceError, read_provenance
from pipeline.sample.requests import ID_DIGITS, PromptRequest

CLIP_NAME = re.compile(rf"[^.].*[0-9a-f]{{{ID_DIGITS}}}{re.escape(CLIP_SUFFIX)}")
logger = logging.getLogger(__name__)


@dataclass
class Reused:
    """How many clips are asked for, how many of them are there, and what is odd in the folder."""

    num_requests: int = 0
    num_made: int = 0
    num_damaged: int = 0
    num_incomplete: int = 0
    num_adopted: int = 0
    num_gone: int = 0


def reused_clips(
    manifest: Manifest,
    requests: Callable[[], Iterable[PromptRequest]],
    model: str | None = None,
    model_folder: str | None = None,
    outputs: OutputsConfig = MP4_ALONE,
) -> Reused:
    """Rewrite a manifest as the requests whose clips are whole, in their order, and then the clips of other requests.

    The name of a clip's file is the address of its content, so a request is compared with the file of its own name
    alone: it must have the checksum of its line. A whole file whose line was lost is listed again, and of a line there
    is, only what it says of its files is kept. A clip is made again if any file that is asked for is not there as it
    should be: all files of a clip are of one making. The other lines of a shard stay in their files.

    Args:
        requests: gives them anew each time.
        model: fingerprint of the checkpoint that they are sampled with, where they name none.
        model_folder: where that is.
        outputs: which files each clip has to have.
    """
    found, wanted = Reused(), set[str]()

    def lines() -> Iterator[SampledClip]:
        for request in requests():
            found.num_requests += 1
            wanted.add(request.id)
            path, line = manifest.folder / request.file_name, manifest.line(request.id)
            if not is_as_listed(path, line):
                found.num_damaged += path.is_file()
                manifest.forget(request.id)
                continue
            clip = _listed_anew(path, request) if line is None else _with_request(line, path, request)
            if clip is None:
                found.num_damaged += 1
                continue
            own = request.checkpoint
            made_by = own.fingerprint if own is not None else model
            folder = own.folder if own is not None else model_folder
            clip = clip.model_copy(update={"model": made_by, "model_folder": folder})
            if clip.lacks(manifest.folder, outputs):
                found.num_incomplete += 1
                manifest.forget(request.id)
                continue
            found.num_made += 1
            found.num_adopted += line is None
            yield clip
        for clip in manifest.own_lines():
            if clip.request.id in wanted:
                continue
            is_there = id_in(clip.file) not in wanted and (manifest.folder / clip.file).is_file()
            found.num_gone += not is_there
            if is_there:
                yield clip

    manifest.rewrite(lines())
    names = (path.name for path in manifest.folder.glob(f"*{CLIP_SUFFIX}") if CLIP_NAME.fullmatch(path.name))
    unlisted = (
        [id_in(name) not in wanted and id_in(name) not in manifest for name in names] if manifest.is_whole else []
    )
    for number, text in (
        (
            sum(unlisted),
            f"clips in the folder are in no line of {SAMPLES_NAME} and of none of these prompts and settings: they "
            "stay, but out of the gallery; sample with their own prompts and settings to list them again",
        ),
        (found.num_damaged, "clips are damaged or cut short, and are made again"),
        (
            found.num_incomplete,
            "clips lack a file that is asked for, or were written with other settings of outputs, and are made again",
        ),
        (found.num_adopted, f"clips were not listed in {SAMPLES_NAME}; they are listed again"),
        (found.num_gone, f"clips of other settings are gone; their lines leave {SAMPLES_NAME}"),
    ):
        if number:
            logger.warning("  warning: %s: %d %s", manifest.folder, number, text)
    return found


def _with_request(line: SampledClip, path: Path, request: PromptRequest) -> SampledClip:
    """A line, with the request as it is made today."""
    digest = file_sha256(path) if line.sha256 is None else line.sha256
    return line.model_copy(update={"file": path.name, "request": request, "sha256": digest})


def _listed_anew(path: Path, request: PromptRequest) -> SampledClip | None:
    """The line of a whole clip that has none; None: the file says that it is another clip.

    Of the files beside it there is no checksum: they count as missing.
    """
    video = None
    try:
        made = read_provenance(path)
    except ProvenanceError:  # of an older version
        pass
    else:
        if made.request.id != request.id:
            return None
        video = made.video
    return SampledClip(
        file=path.name,
        request=request,
        num_network_calls=None,
        sha256=file_sha256(path),
        num_bytes=path.stat().st_size if video is not None else None,
        video=video,
    )


def id_in(file: str) -> str:
    """The id at the end of the name of a clip's file."""
    return file.removesuffix(CLIP_SUFFIX)[-ID_DIGITS:]
