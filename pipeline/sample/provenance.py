"""What the MP4 file of a clip says of itself: all that is needed to make the same bytes again.

The record is the tag `comment` of the file. It is a function of the clip's address and of how it is encoded: it names
the checkpoint, images and clips by what they hold. Where they lie, and the user's own metadata, are in `manifest.jsonl`
alone, so that equal clips have equal bytes, wherever they are made.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from data.errors import ReelflowError, VideoError, shorten
from data.records import Record
from data.video.codec import read_tags
from data.video.config import VideoConfig
from pipeline.sample.given import CLIPS, IMAGES, ImageFile
from pipeline.sample.outputs import is_whole_clip
from pipeline.sample.requests import PromptRequest

RECORD_TAG, TITLE_TAG = "comment", "title"
MAX_TITLE = 200  # characters


class ProvenanceError(ReelflowError, ValueError):
    """A clip that does not say how it was made; the message names the file and the way out."""


class NamedCheckpoint(Record):
    """A checkpoint or a published pipeline, by what it holds."""

    name: str  # for people, such as "dit, step 1800"
    fingerprint: str


class Provenance(Record):
    """How a clip was made."""

    reelflow: Literal[1] = 1  # version of this record
    checkpoint: NamedCheckpoint
    request: PromptRequest  # without paths and the user's metadata
    video: VideoConfig  # with a value for every field

    def tags(self) -> dict[str, str]:
        """The metadata of the MP4 file."""
        title = " ".join(shorten(self.request.prompt, MAX_TITLE).split())
        return {TITLE_TAG: title, RECORD_TAG: self.text()}

    def text(self) -> str:
        """The record as JSON."""
        return self.model_dump_json()


def without_places(request: PromptRequest) -> PromptRequest:
    """A request as the file of its clip has it: without paths, and without what the clip does not depend on."""

    def placeless(file: ImageFile | None) -> ImageFile | None:
        return None if file is None else file.model_copy(update={"path": ""})

    given = request.given
    if given is not None:
        names = [name for name in (*IMAGES, *CLIPS) if name in type(given).model_fields]
        given = given.model_copy(update={name: placeless(getattr(given, name)) for name in names})
    return request.model_copy(
        update={
            "image": placeless(request.image),
            "given": given,
            "checkpoint": None,  # which the record names itself
            "weaker": None if request.weaker is None else request.weaker.model_copy(update={"folder": ""}),
            "expect": None,
            "metadata": None,
        }
    )


def read_provenance(path: Path) -> Provenance:
    """How the clip in an MP4 file was made.

    Raises:
        ProvenanceError: it is no whole MP4 file, or does not say so.
    """
    try:
        if path.is_file() and not is_whole_clip(path):
            raise ProvenanceError(f"{path} is cut short or damaged, or no MP4 file; {_BY_MANIFEST}")
        tags = read_tags(path)
    except VideoError as error:
        raise ProvenanceError(f"{path}: {error}; {_BY_MANIFEST}") from error
    except OSError as error:
        raise ProvenanceError(f"{path} cannot be read ({error.strerror or error})") from error
    if RECORD_TAG not in tags:
        raise ProvenanceError(
            f"{path} does not say how it was made: it is of an older version, or was written by another program; "
            f"{_BY_MANIFEST}"
        )
    try:
        return Provenance.model_validate(json.loads(tags[RECORD_TAG]))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise ProvenanceError(f"{path}: its tag {RECORD_TAG!r} is no record of a clip ({reason})") from error
    except (ValueError, RecursionError) as error:
        raise ProvenanceError(
            f"{path}: its tag {RECORD_TAG!r} is no record of a clip ({shorten(str(error))}); {_BY_MANIFEST}"
        ) from error


_BY_MANIFEST = "name its line instead, if there is one: remake FOLDER/manifest.jsonl --name CLIP.mp4"
