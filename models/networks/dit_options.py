"""Options of the diffusion transformer's blocks (`DiTConfig`). Nothing here loads torch."""

from typing import Literal

from pydantic import Field, model_validator

from data.records import Settings

AttentionSpan = Literal["full", "space", "time"]
"""Which tokens a block's self-attention relates: all, those of one frame, or those at one place in all frames."""
ClipNumber = Literal["fps", "size"]
"""What a network may be told of a clip beside time and caption (`models/networks/clip_condition.py`)."""
KnownFrames = Literal["time", "channels"]
"""How a network is told which frames are given (`models/networks/known_frames.py`)."""
ModulationKind = Literal["per_block", "shared", "low_rank"]
"""Where a block's shifts, scales and gates come from (`models/networks/modulation.py`)."""


class RopeConfig(Settings):
    """How tokens are told their position in time, height and width (`models/networks/rope.py`)."""

    theta: float = Field(default=100.0, gt=1)
    """The longest wavelength is about 2 pi `theta` tokens. Clips are far shorter than texts, where 10,000 is usual."""
    axes: tuple[int, int, int] | None = None
    """Channels of each head that turn with time, height and width: even numbers, which add up to the channels of a
    head. None: about a quarter for time, and equal shares for height and width."""
    trained_grid: tuple[int, int, int] | None = None
    """Tokens in time, height and width up to which `extrapolation` changes nothing; None with `extrapolation: none`."""
    extrapolation: Literal["none", "interpolate", "ntk"] = "none"
    """Positions along an axis that is s times as long as in `trained_grid`: as they are, divided by s (`interpolate`),
    or with slow frequencies divided by s and fast ones kept (`ntk`). Set it from the first training on."""

    @model_validator(mode="after")
    def _check(self) -> "RopeConfig":
        if self.axes is not None and any(channels < 0 or channels % 2 for channels in self.axes):
            raise ValueError(f"axes is {list(self.axes)}, but channels turn in pairs: use even numbers")
        if self.trained_grid is not None and min(self.trained_grid) < 1:
            raise ValueError(f"trained_grid is {list(self.trained_grid)}, but every axis has at least one token")
        if (self.trained_grid is None) != (self.extrapolation == "none"):
            raise ValueError(
                f"extrapolation is {self.extrapolation!r}, but trained_grid is "
                f"{None if self.trained_grid is None else list(self.trained_grid)}: give both or neither"
            )
        return self
