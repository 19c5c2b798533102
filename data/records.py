"""What every package builds its records from, and the type of decoded pixels.

A `Record` is data that is written to disk or passed between processes. `Settings` are records of the configuration:
each field has a docstring, from which the reference page and the JSON schema are generated, and is either part of what
an output is made from, or marked as `Runtime` or `Layout`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict

Frames = UInt8[np.ndarray, "t h w 3"]
"""Decoded pixels of a clip, RGB."""


class Record(BaseModel):
    """Immutable; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Record):
    """A part of the configuration."""

    model_config = ConfigDict(use_attribute_docstrings=True)


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
