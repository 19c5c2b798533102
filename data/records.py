"""What every package builds its records from, and the type of decoded pixels.

A `Record` is data that is written to disk or passed between processes. `Settings` are records of the configuration:
each field has a docstring, from which the reference page and the JSON schema are generated, and is either part of what
an output is made from, or marked as `Runtime` or `Layout`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
from jaxtyping import UInt8
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator

from data.errors import shorten

Frames = UInt8[np.ndarray, "t h w 3"]
"""Decoded pixels of a clip, RGB."""
MAX_CHANNELS = 2**16
"""Upper limit of widths and numbers of heads in a configuration, far above what is used: the messages that name the
nearest one that fits search through all smaller ones.
"""

HIDDEN = "hidden"
"""Type of a pydantic error about a value that messages must not show."""


def _check_text(text: str) -> str:
    bad = next((character for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), None)
    if bad is not None:
        raise ValueError(f"it contains U+{ord(bad):04X}, which is no character of a text")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
"""Text for people or networks: it can be written as UTF-8, and holds no null character."""


def _check_file_name(name: str) -> str:
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ValueError(f"{shorten(name)!r} is not the name of a file in this folder")
    return name


FileName = Annotated[str, AfterValidator(_check_file_name)]
"""Name of a file in the folder that the record lies in. A path that leads out of the folder is refused."""


class Record(BaseModel):
    """Immutable; unknown fields are refused, and numbers that are not finite, unless a field has `AllowInfNan`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_64_bit(number: int) -> bool:
    """Whether a number is one that every reader and library can hold."""
    return -(2**63) <= number < 2**63


def _flat(value: object) -> Iterator[object]:
    """The values in lists and tuples, at any depth; any other value itself."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _flat(inner)
    else:
        yield value


def _kinds(annotation: object) -> set[object]:
    """The types that a type expression names, at any depth."""
    return {annotation}.union(*(_kinds(part) for part in get_args(annotation)))


class Settings(Record):
    """A part of the configuration. A path may begin with `~`, which stands for the home folder."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any field
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if {int, float} & kinds and bool not in kinds and any(isinstance(inner, bool) for inner in _flat(value)):
            raise ValueError("true and false are no numbers")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_uris_as_paths(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any field
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if Path in kinds and str not in kinds and isinstance(value, str):
            scheme, separator, _ = value.partition("://")
            if separator:  # as a path it would be a folder of that name
                raise ValueError(
                    f"it must be a path, and this is a URI of {shorten(scheme)}: videos are read from object stores "
                    "by data.source, and runs kept in them by runs_dir or store"
                )
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_large_numbers(cls, value: Any) -> Any:  # noqa: ANN401 - of any field
        if any(isinstance(inner, int) and not is_64_bit(inner) for inner in _flat(value)):
            raise ValueError("it is no number of 64 bits")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:  # noqa: ANN401 - of any field
        return Path(expand_home(str(value))) if isinstance(value, Path) else value


def expand_home(path: str) -> str:
    """A path with the home folder in place of a leading `~` or `~user`; any other path or URI as it is.

    Raises:
        ValueError: there is no such user.
    """
    if not path.startswith("~"):
        return path
    home, separator, rest = path.partition("/")
    try:
        return f"{Path(home).expanduser()}{separator}{rest}"
    except RuntimeError as error:
        raise ValueError(f"{path} begins with ~, and there is no such user: use an absolute path") from error


@dataclass(frozen=True)
class FieldMarker:
    """Says in a field's `Annotated[...]` type how the field relates to what is made."""

    meaning: str


Runtime = FieldMarker("changes how the work is done, not its result: speed, memory, what is shown, when it is saved")
Layout = FieldMarker("changes how samples are grouped into shards, not the samples")


@dataclass(frozen=True)
class AddedLater:
    """Marks a field that older versions lacked: with this value it is left out of fingerprints and stored records.

    So an output that was made before the field existed stays valid as long as the field keeps the older behaviour.
    """

    implied: object
