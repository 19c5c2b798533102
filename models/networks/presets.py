"""Sizes of the diffusion transformer, from a test on a laptop to 14 billion parameters. Nothing here loads torch.

Heads have 64 channels up to L and 128 above, which attention kernels are fastest with; from S on, the blocks share
their modulation, and from B on 4 divides the number of heads, for sequence parallelism. docs/guides/networks.md has
the counted parameters and operations of each.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel

PresetName = Literal["tiny", "S", "B", "L", "XL", "5B", "14B"]


@dataclass(frozen=True)
class TextSize:
    """Fields of `TextConfig`."""

    width: int
    depth: int
    heads: int


@dataclass(frozen=True)
class Preset:
    """Fields of `DiTConfig`."""

    width: int
    depth: int
    heads: int
    text: TextSize
    modulation: Literal["per_block", "shared"] = "shared"


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(192, 6, 3, TextSize(128, 2, 2), modulation="per_block"),
    "S": Preset(384, 12, 6, TextSize(256, 2, 4)),
    "B": Preset(768, 12, 12, TextSize(512, 2, 8)),
    "L": Preset(1024, 24, 16, TextSize(512, 2, 8)),
    "XL": Preset(2048, 20, 16, TextSize(1024, 2, 8)),
    "5B": Preset(3072, 36, 24, TextSize(1024, 2, 8)),
    "14B": Preset(5120, 36, 40, TextSize(1024, 2, 8)),
}


def with_preset(fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    """The fields of a network, with the sizes of their `preset` in its place.

    A preset is a shorthand: resolved configurations, checkpoints and comparisons have the sizes alone.

    Raises:
        ValueError: a size is given that is not that of the preset.
    """
    if not isinstance(fields, dict) or fields.get("preset") not in PRESETS:
        return fields
    name, sizes = fields["preset"], asdict(PRESETS[fields["preset"]])
    given = {field: value for field, value in fields.items() if field != "preset"}
    return _joined(name, sizes, given, "")


def _joined(name: str, sizes: dict[str, Any], given: dict[str, Any], place: str) -> dict[str, Any]:
    joined = sizes | given
    for field, size in sizes.items():
        value = given.get(field, size)
        if isinstance(size, dict):
            inner = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
            joined[field] = _joined(name, size, inner, f"{field}.") if isinstance(inner, dict) else inner
        elif value != size:
            raise ValueError(
                f"{place}{field} is {value}, but {size} in preset {name}: leave out {place}{field}, or preset"
            )
    return joined
