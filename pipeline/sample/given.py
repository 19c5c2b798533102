"""What rows of a prompts file give beside text: images and clips, a mask, the length, and prompts that follow.

An image or a clip is a part of its row's content address by what the file holds, wherever it is.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from data.records import AddedLater, Record, Text

IMAGES, CLIPS = ("image", "last_image", "mask"), ("clip", "last_clip", "source")
"""The columns that name files."""
MAX_PROMPT_CHARACTERS = 2**16


class ImageFile(Record):
    """An image or a video on disk, and what it holds."""

    path: str
    sha256: str


class LaterPrompt(Record):
    """A prompt that takes over in a clip of several windows: in the first window whose new frames are not before it."""

    seconds: float = Field(gt=0)  # after the beginning of the clip
    prompt: Text = Field(max_length=MAX_PROMPT_CHARACTERS)


class Length(Record):
    """The part of a row that is no file: how much is used of clips, and what comes of it."""

    strength: Annotated[float | None, AddedLater(None)] = Field(default=None, gt=0, le=1)
    """Of `source`: it is varied from time 1 - strength on. None: 1, all of it is noise at first."""
    context: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=1)
    """Frames that are used of `clip` and `last_clip`, 4k + 1; None: about half a clip, as far as was trained."""
    total_frames: Annotated[int | None, AddedLater(None)] = Field(default=None, ge=1)
    """Frames of the clip, 4k + 1 and at least those of its bucket: more are made in windows. None: the bucket's."""
    later_prompts: Annotated[tuple[LaterPrompt, ...] | None, AddedLater(None)] = None
    """Prompts that take over from `prompt` in later windows, in the order of time; also as [seconds, prompt]."""

    @field_validator("later_prompts", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if not isinstance(value, list | tuple):
            return value
        pairs = [entry for entry in value if isinstance(entry, list | tuple) and len(entry) == 2]
        return [{"seconds": p[0], "prompt": p[1]} for p in pairs] if value and len(pairs) == len(value) else value

    @field_validator("later_prompts")
    @classmethod
    def _in_order(cls, value: tuple[LaterPrompt, ...] | None) -> tuple[LaterPrompt, ...] | None:
        seconds = [each.seconds for each in value or ()]
        if sorted(set(seconds)) != seconds:
            raise ValueError("give them in the order of their seconds, no two at the same time")
        return value

    @field_validator("strength", "context", "total_frames", mode="before")
    @classmethod
    def _refuse_flags(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(value, bool):
            raise ValueError("true and false are no numbers")
        return value


class GivenColumns(Length):
    """The columns of a prompts file by which rows give more than text; paths may be relative to the file."""

    image: Annotated[Text | None, AddedLater(None)] = None
    """The clip starts with this image."""
    clip: Annotated[Text | None, AddedLater(None)] = None
    """The clip starts with the last frames of this video: it is extended."""
    last_image: Annotated[Text | None, AddedLater(None)] = None
    """The clip ends with this image, for the frames of a latent frame."""
    last_clip: Annotated[Text | None, AddedLater(None)] = None
    """The clip ends with the first frames of this video: with a start, what is between them is made."""
    source: Annotated[Text | None, AddedLater(None)] = None
    """The clip is made from this video, by `strength`, or in `mask`."""
    mask: Annotated[Text | None, AddedLater(None)] = None
    """An image that is white where `source` is made anew, and black where it is kept."""

    @model_validator(mode="after")
    def _check_columns(self) -> "GivenColumns":
        if problem := _contradiction(self):
            raise ValueError(problem)
        return self


def _contradiction(row: GivenColumns) -> str | None:
    """What is wrong with the columns of a row together, and the way out; None: nothing."""
    has = {name: getattr(row, name) is not None for name in GivenColumns.model_fields}
    for one, other in (("image", "clip"), ("last_image", "last_clip")):
        if has[one] and has[other]:
            return f"{one} and {other} both say how the clip {'starts' if one == 'image' else 'ends'}: give one of them"
    if has["source"]:
        if beside := [name for name in ("image", "clip", "last_image", "last_clip", "total_frames") if has[name]]:
            return f"source gives all frames, so {beside[0]} cannot be given beside it: leave one of them out"
        if not has["strength"] and not has["mask"]:
            return "source needs strength (above 0, at most 1), or a mask that says what is made anew"
    elif has["strength"] or has["mask"]:
        return f"{'strength' if has['strength'] else 'mask'} is of a source: name the video in source"
    if has["context"] and not (has["clip"] or has["last_clip"]):
        return "context is of clip or last_clip, and none is given"
    if has["later_prompts"] and not has["total_frames"]:
        return "later_prompts take over in later windows, so total_frames has to say how long the clip is"
    return None


class Given(Length):
    """What one clip is given beside its prompt and first image, with all files named and read."""

    clip: ImageFile | None = None
    last_image: ImageFile | None = None
    last_clip: ImageFile | None = None
    source: ImageFile | None = None
    mask: ImageFile | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}

    @property
    def layout(self) -> tuple[object, ...]:
        """What clips that are computed together have in common."""
        files = tuple(getattr(self, name) is not None for name in ("clip", "last_image", "last_clip", "source", "mask"))
        return (*files, self.strength, self.context, self.total_frames)

    @property
    def address(self) -> str:
        """A part of the clip's content address: of files what they hold."""
        fields = self.model_dump_json(exclude={name: {"path"} for name in (*IMAGES, *CLIPS)})
        return f"\0given {blake2b(fields.encode(), digest_size=16).hexdigest()}"


NOTHING = Given()


def files_named_by(row: GivenColumns) -> dict[str, str]:
    """The paths of a row, by column."""
    named = {name: getattr(row, name) for name in (*IMAGES, *CLIPS)}
    return {name: path for name, path in named.items() if path is not None}


def given_of(row: GivenColumns, file_at: Callable[[str], ImageFile]) -> Given | None:
    """What a row gives beside prompt and first image; None: nothing.

    Args:
        file_at: reads the file at a path.
    """
    files = {name: file_at(path) for name, path in files_named_by(row).items() if name != "image"}
    given = Given(**files, **{name: getattr(row, name) for name in Length.model_fields})
    return None if given == NOTHING else given
