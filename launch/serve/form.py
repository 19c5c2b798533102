"""The controls of the page: columns of a prompts file, which begin with what the checkpoint is sampled with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Given
from pipeline.sample.model import SampledModel
from pipeline.sample.prompts import SETTINGS
from pipeline.sample.requests import PromptRequest

FIRST = ("steps", "guidance_scale", "solver", "negative_prompt")
"""Settings that are always shown; the others are behind a click."""
OF_FILES = ("guidance_checkpoint", "guidance_weights")
"""Settings that name files of this machine: for the command's --set, not for whoever sees the page."""
OF_ROWS = ("bucket", "seed", "num_seeds", "total_frames")
"""Columns that are no settings, and have controls of their own."""


@dataclass(frozen=True)
class Control:
    """A column of a prompts file, as the page asks for it."""

    name: str
    help: str
    default: str = ""
    """As text; empty: none."""
    choices: tuple[str, ...] = ()
    """Empty: anything may be typed."""

    @property
    def label(self) -> str:
        """For people."""
        text = {"bucket": "shape", "num_seeds": "clips"}.get(self.name, self.name.replace("_", " "))
        return text[0].upper() + text[1:]


def controls_of(model: SampledModel, config: SampleConfig) -> list[Control]:
    """The controls for a model, in the order of the page.

    Args:
        config: what clips are sampled with where nothing else is asked for.

    Raises:
        PromptError: `sample.bucket` cannot be sampled.
    """
    bucket = model.default_bucket(config.bucket)
    names = [each.name for each in model.trained_buckets]
    shapes = tuple(dict.fromkeys([bucket.name, *names])) if bucket is not None else ()
    rest = [name for name in SETTINGS if name not in FIRST and name not in OF_FILES]
    return [
        *(_setting(name, model, config) for name in FIRST),
        Control(
            "bucket",
            "Frames x height x width @ frames per second.",
            "" if bucket is None else bucket.name,
            shapes if len(shapes) > 1 else (),
        ),
        Control("seed", "Of the noise. Equal seeds give equal clips; none: it follows from the prompt."),
        Control("num_seeds", "Clips to make, with this seed and those after it.", "1"),
        Control("total_frames", "Of a clip longer than its shape, which is made in windows; 4k + 1."),
        *(_setting(name, model, config) for name in rest),
    ]


def row_of_form(values: Mapping[str, str], controls: Iterable[Control], image: str | None = None) -> dict[str, Any]:
    """What the page asks for as a row of a prompts file: what differs from the defaults.

    Runs of white space in the prompt are one space, as in a text file of prompts.

    Args:
        values: by name, as text; `prompt` too.
        image: the path of the image to start from.
    """
    row: dict[str, Any] = {"prompt": " ".join(values["prompt"].split())}
    if image is not None:
        row["image"] = image
    for control in controls:
        if (value := values[control.name].strip()) != control.default:
            row[control.name] = value
    return row


def form_of(request: PromptRequest, controls: Iterable[Control]) -> dict[str, str]:
    """The values of the page that ask for a clip again; an image is not among them."""
    settings, given = request.settings, request.given
    total = None if given is None else given.total_frames
    values = {"prompt": request.prompt, "seed": str(request.seed), "bucket": request.bucket, "num_seeds": "1"}
    values["total_frames"] = _text(total)
    for control in controls:
        if control.name not in values:
            values[control.name] = control.default if settings is None else _text(getattr(settings, control.name))
    return values


def is_of_form(request: PromptRequest) -> bool:
    """Whether the form can ask for such a clip: it has no control for other files than an image."""
    given = request.given
    return (
        request.settings is not None
        and request.weaker is None
        and (given is None or given == Given(total_frames=given.total_frames))
    )


def changed_in(request: PromptRequest, controls: Iterable[Control]) -> dict[str, str]:
    """The settings of a clip that are not those of the page's beginning, by label."""
    if request.settings is None:
        return {}
    values = form_of(request, controls)
    return {
        control.label.lower(): values[control.name]
        for control in controls
        if control.name not in OF_ROWS and values[control.name] != control.default
    }


def _setting(name: str, model: SampledModel, config: SampleConfig) -> Control:
    field = SampleConfig.model_fields[name]
    choices = _choices(field.annotation)
    if name == "solver":
        flow = model.flow
        usable = {"jumps": flow.tokens is not None, "flow_map": flow.map is not None}
        usable["renoise"] = flow.few_steps is not None
        follows_velocities = flow.tokens is None and flow.matching is None
        choices = tuple(choice for choice in choices if usable.get(choice, follows_velocities))
    return Control(name, " ".join((field.description or "").split()), _text(getattr(config, name)), choices)


def _choices(annotation: object) -> tuple[str, ...]:
    """The words of a type that has some; an empty one where it may be None."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    parts = get_args(annotation)
    found = tuple(choice for part in parts for choice in _choices(part))
    return ("", *found) if found and type(None) in parts else found


def _text(value: object) -> str:
    """A value as the page shows it, which reads back as the same."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ", ".join(map(_text, value)) if isinstance(value, tuple) else str(value)
