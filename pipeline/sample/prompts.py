"""A prompt: one row of a prompts file, with what it asks for beside the text."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field, JsonValue, ValidationError, field_validator

from data.errors import ReelflowError, shorten
from data.records import AddedLater, Text
from pipeline.sample.given import MAX_PROMPT_CHARACTERS, GivenColumns

MAX_SEEDS = 2**20
SHAPE_FIELDS = ("num_frames", "height", "width", "fps")
METADATA_PREFIX = "meta."
SETTINGS = (
    *("solver", "steps", "shift", "grid", "flow_path", "tolerance", "schedule", "pyramid_delay", "sde_sigma"),
    *("ddim_eta", "temperature", "corrector", "weights"),
    *("guidance_scale", "guidance", "guidance_interval", "zero_until", "rescale", "window_overlap"),
    *("apg_eta", "apg_momentum", "apg_threshold", "guidance_checkpoint", "guidance_weights", "negative_prompt"),
)
"""Fields of `SampleConfig` that a row may set for itself."""


class PromptError(ReelflowError, ValueError):
    """A prompt or a prompts file that cannot be used; the message names the file and the line.

    Args:
        reason: what is wrong, beginning with the field, where the message says more around it.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or message


class Prompt(GivenColumns):
    """A row of a prompts file. Paths are in the file also relative to it, later absolute."""

    prompt: Text = Field(max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = None  # of the noise; None: derived from the seed of the run and the text of the prompt
    # Clips of this row; with a seed they have that one and those after it
    num_seeds: Annotated[int, AddedLater(1)] = Field(default=1, ge=1, le=MAX_SEEDS)
    bucket: Text | None = None  # shape of the clip, such as 17x64x64@8; None: that of the configuration
    num_frames: Annotated[int | None, AddedLater(None)] = None  # in place of that of the configuration's shape
    height: Annotated[int | None, AddedLater(None)] = None
    width: Annotated[int | None, AddedLater(None)] = None
    fps: Annotated[float | None, AddedLater(None)] = None
    expect: dict[Text, Text] | None = None  # attribute -> value that the judge should find, where it is known
    # Folder of a checkpoint that samples this row in place of the job's, such as one with adapters (LoRA)
    checkpoint: Annotated[Text | None, AddedLater(None)] = None
    # Of the user's own: passed on to the clip's line in manifest.jsonl, and of no influence on the clip
    metadata: Annotated[dict[Text, JsonValue] | None, AddedLater(None)] = None
    # Fields of `SampleConfig` in place of those of the job; in a file they are columns of their own
    settings: Annotated[dict[str, JsonValue], AddedLater({})] = Field(default={})

    @field_validator("seed", "num_seeds", *SHAPE_FIELDS, mode="before")
    @classmethod
    def _refuse_truth_values(cls, number: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(number, bool):
            raise ValueError("true and false are no numbers")
        return number


FIELDS = tuple(name for name in Prompt.model_fields if name != "settings")
COLUMNS = (*FIELDS, *SETTINGS)
"""Every column that a prompts file may have, beside those that begin with `METADATA_PREFIX`."""


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt, and where it comes from."""

    place: str
    """For messages, such as "prompts.csv: row 7"."""
    prompt: Prompt


def prompt_of(place: str, row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row; cells without a value count as absent.

    Raises:
        PromptError: a column is unknown, or a value is not what it should be; names the place and the column. Values
            of the columns `SETTINGS` are checked later, together with the settings of the job.
    """
    fields: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for column, value in row.items():
        name = str(column)
        if name.startswith(METADATA_PREFIX):
            metadata[name.removeprefix(METADATA_PREFIX)] = value
        elif name in SETTINGS:
            if value is not None:
                settings[name] = value
        elif name not in FIELDS:
            close = get_close_matches(name[:64], COLUMNS, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(COLUMNS)}"
            raise PromptError(
                f"{place} is not a prompt: {shorten(name)}: there is no such column; {hint} What is of no concern to "
                f"sampling goes into columns named {METADATA_PREFIX}NAME"
            )
        elif value is not None or name == "prompt":
            fields[name] = value
    if metadata and isinstance(own := fields.setdefault("metadata", {}), dict):
        fields["metadata"] = own | metadata
    try:
        return Prompt(**fields, settings=settings)
    except ValidationError as error:
        raise refusal(place, error) from error


def refusal(place: str, reason: str | ValidationError) -> PromptError:
    """The error that a row is no prompt."""
    if isinstance(reason, ValidationError):
        first = reason.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return PromptError(
        f"{place} is not a prompt: {shorten(reason, 300)}; a prompt has the fields "
        f'{{"prompt": "a red circle moves left", "seed": 1}} and, if need be, others (docs/guides/sampling.md)',
        shorten(reason, 300),
    )


def row_of(prompt: Prompt) -> dict[str, Any]:
    """The inverse of `prompt_of`."""
    fields = prompt.model_dump(exclude_none=True, exclude_defaults=True, exclude={"settings"})
    return fields | prompt.settings


def format_prompts(prompts: Iterable[Prompt]) -> Iterator[str]:
    """Prompts as the lines of a JSONL file."""
    return (json.dumps(row_of(prompt), ensure_ascii=False, separators=(",", ":")) + "\n" for prompt in prompts)
