"""Requests: the clips that prompts ask for, with all options decided, and their content addresses."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import JsonValue, SerializerFunctionWrapHandler, field_serializer, model_serializer

from data.errors import shorten
from data.files.checksums import file_sha256
from data.records import Record
from pipeline.run.fingerprints import output_settings, stored
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import NOTHING, Given, ImageFile, files_named_by
from pipeline.sample.prompts import PlacedPrompt, PromptError

ID_DIGITS = 12
ONLY_WHERE_GIVEN = ("image", "given", "checkpoint", "weaker", "settings", "metadata")


class PlacedModel(Record):
    """A checkpoint that a request names, and what it holds."""

    folder: str
    fingerprint: str


class PromptRequest(Record):
    """One clip to sample, with all options decided."""

    id: str  # content address: 12 hexadecimal digits
    prompt: str
    seed: int
    guidance_scale: float
    bucket: str
    expect: dict[str, str] | None = None
    image: ImageFile | None = None  # that the clip starts from; left out where there is none
    given: Given | None = None  # what else is given; left out where there is nothing
    checkpoint: PlacedModel | None = None  # that makes the clip; left out where it is that of the job
    weaker: PlacedModel | None = None  # for autoguidance; left out where there is none
    settings: SampleConfig | None = None  # of sampling, those that decide the pixels; None: of an older version's line
    metadata: dict[str, JsonValue] | None = None  # the user's own

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = serialize(self)
        return {name: value for name, value in fields.items() if name not in ONLY_WHERE_GIVEN or value is not None}

    @field_serializer("settings")
    def _that_decide_pixels(self, settings: SampleConfig | None) -> dict[str, Any] | None:
        return None if settings is None else output_settings(settings)

    @property
    def layout(self) -> tuple[object, ...]:
        """What requests have in common that are computed together, beside shape and settings."""
        return (self.image is not None, *(self.given or NOTHING).layout)

    @property
    def is_of_noise_alone(self) -> bool:
        """Whether the clip is a function of its noise and its prompt, by a flow: then the two are a pair (reflow)."""
        settings = self.settings
        if settings is None or self.image is not None or self.given is not None:
            return False
        return settings.sde_sigma == settings.ddim_eta == 0 and settings.solver not in ("renoise", "jumps")

    def prompt_at(self, seconds: float) -> str:
        """The prompt of the window whose first new frame is shown at that time."""
        later = (self.given or NOTHING).later_prompts or ()
        return [self.prompt, *(each.prompt for each in later if each.seconds <= seconds)][-1]

    @property
    def file_name(self) -> str:
        """Name of the MP4 file: words of the prompt, then the id."""
        words = "-".join("".join(c if c.isalnum() and c.isascii() else " " for c in self.prompt.lower()).split())
        return f"{words[:48].strip('-') or 'clip'}-{self.id}.mp4"


def image_file(path: str) -> ImageFile:
    """An image or a clip that a prompt names.

    Raises:
        PromptError: it is not there any more.
    """
    try:
        return ImageFile(path=path, sha256=file_sha256(Path(path)))
    except OSError as error:
        raise PromptError(f"file {shorten(path)} cannot be read ({error.strerror}); copy it back") from error


def prompt_settings(
    prompts: Iterable[PlacedPrompt], fingerprints: Mapping[str, str] = MappingProxyType({})
) -> Iterator[dict[str, Any]]:
    """What a stage's output depends on of its prompts: of files and checkpoints what they hold, wherever they are.

    Args:
        fingerprints: of the checkpoints that rows name, by what the rows call them.
    """
    for placed in prompts:
        held = {name: image_file(path).sha256 for name, path in files_named_by(placed.prompt).items()}
        if (named := placed.prompt.checkpoint) is not None:
            held["checkpoint"] = fingerprints[named]
        yield stored(placed.prompt) | held


def derived_seed(run_seed: int, prompt: str, start: str, repeat: int) -> int:
    """The seed of a prompt that gives none.

    Args:
        start: as `start_of`.
        repeat: how many clips of an equal prompt and start have got their seeds so already.
    """
    address = f"{run_seed}\0{prompt}\0{repeat}{start}"
    return int.from_bytes(blake2b(address.encode(), digest_size=4).digest(), "big")


def address_of(prompt: str, seed: int, guidance_scale: float, bucket: str, settings: str, start: str) -> str:
    """All that a clip depends on, as text.

    Args:
        settings: identifies all else that the pixels depend on, such as checkpoint, solver and steps.
        start: as `start_of`.
    """
    return f"{prompt}\0{seed}\0{_digits(guidance_scale)}\0{bucket}\0{settings}{start}"


def id_of(address: str) -> str:
    """The name of an address, which is that of the clip."""
    return blake2b(address.encode(), digest_size=ID_DIGITS // 2).hexdigest()


def start_of(image: ImageFile | None, given: Given | None) -> str:
    """A part of the address: what is given beside text. Of files it has what they hold, not where they are."""
    return ("" if image is None else f"\0image {image.sha256}") + ("" if given is None else given.address)


def _digits(scale: float) -> str:
    """A guidance scale in six digits where these are exact, and else in all of its digits."""
    short = f"{scale:g}"
    return short if float(short) == scale else repr(scale)
