"""Which clips of a samples folder can be kept: those that are what their lines say."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data.files.checksums import file_sha256
from pipeline.sample.manifest import Manifest
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, is_as_listed
from pipeline.sample.requests import ID_DIGITS, PromptRequest

logger = logging.getLogger(__name__)

SUFFIX = ".mp4"


@dataclass
class Reused:
    """How many clips are asked for, how many of them are there, and what is odd in the folder."""

    num_requests: int = 0
    num_made: int = 0
    num_damaged: int = 0
    num_adopted: int = 0
    num_gone: int = 0


def reused_clips(
    manifest: Manifest, requests: Callable[[], Iterable[PromptRequest]], model: str | None = None
) -> Reused:
    """Rewrite a manifest as the requests whose clips are whole, in their order, and then the clips of other requests.

    The name of a clip's file is the address of its content, so a request is compared with the file of its own name
    alone: it must have the checksum of its line. A whole file whose line was lost is listed again, and of a line there
    is, only the checksum and the number of network calls are kept. The other lines of a shard stay in their files.

    Args:
        requests: gives them anew each time.
        model: fingerprint of the checkpoint that they are sampled with.
    """
    found, wanted = Reused(), set[str]()

    def lines() -> Iterator[SampledClip]:
        for request in requests():
            found.num_requests += 1
            wanted.add(request.id)
            path, line = manifest.folder / request.file_name, manifest.line(request.id)
            if is_as_listed(path, line):
                found.num_made += 1
                found.num_adopted += line is None
                calls = None if line is None else line.num_network_calls
                digest = file_sha256(path) if line is None or line.sha256 is None else line.sha256
                yield SampledClip(
                    file=request.file_name, request=request, num_network_calls=calls, sha256=digest, model=model
                )
            else:
                found.num_damaged += path.is_file()
        for clip in manifest.own_lines():
            if clip.request.id in wanted:
                continue
            is_there = id_in(clip.file) not in wanted and (manifest.folder / clip.file).is_file()
            found.num_gone += not is_there
            if is_there:
                yield clip

    manifest.rewrite(lines())
    names = (path.name for path in manifest.folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
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
        (found.num_adopted, f"clips were not listed in {SAMPLES_NAME}; they are listed again"),
        (found.num_gone, f"clips of other settings are gone; their lines leave {SAMPLES_NAME}"),
    ):
        if number:
            logger.warning("  warning: %s: %d %s", manifest.folder, number, text)
    return found


def id_in(file: str) -> str:
    """The id at the end of the name of a clip's file."""
    return file.removesuffix(SUFFIX)[-ID_DIGITS:]
