"""How an average weighs past weights: by a fixed decay, or by the power function of Karras et al. 2023.

"Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), section 3.1 and appendix C. A
power function keeps its shape as training continues: its width is always the same fraction of the training's length.
"""

from collections.abc import Sequence
from math import expm1, log1p, sqrt
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from data.records import Settings

FLATTEST = 1 / sqrt(12)  # relative standard deviation of the plain mean, exponent 0


class FixedDecay(Settings):
    """ema += (1 - decay) (weight - ema): the last log(1/2) / log(decay) updates have half of the total weight."""

    decay: float = Field(ge=0, lt=1)
    """Decay per update, in [0, 1). In the first updates a smaller decay, (1 + n) / (10 + n) at update n, is used."""

    @property
    def name(self) -> str:
        """Such as decay-0.999."""
        return f"decay-{self.decay!r}"

    def weight(self, num_updates: int) -> float:
        """Share of the weights after update `num_updates` (from 1) in the average: large at first, then 1 - decay."""
        return 1 - min(self.decay, (1 + num_updates) / (10 + num_updates))


class PowerFunction(Settings):
    """The weights after update s count in proportion to s^gamma: (s^(gamma+1) - (s-1)^(gamma+1)) / t^(gamma+1) at t."""

    sigma_rel: float = Field(ge=1e-3, le=FLATTEST)
    """Standard deviation of s / t: the width of the average relative to the length of training, in [0.001, 0.288]."""

    @property
    def name(self) -> str:
        """Such as power-0.10."""
        return f"power-{max(repr(self.sigma_rel), f'{self.sigma_rel:.2f}', key=len)}"

    @property
    def gamma(self) -> float:
        """The exponent."""
        return exponent(self.sigma_rel)

    def weight(self, num_updates: int) -> float:
        """Share of the weights after update t (from 1) in the average: 1 - (1 - 1/t)^(gamma+1) (equation 3)."""
        if num_updates == 1:
            return 1.0  # the initial weights have no share
        return -expm1((self.gamma + 1) * log1p(-1 / num_updates))


def relative_width(gamma: float) -> float:
    """sigma_rel of an exponent (equation 4)."""
    return sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def exponent(sigma_rel: float) -> float:
    """gamma of a relative standard deviation: the greatest root of equation 4 as a cubic (algorithm 2)."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _kind(profile: Any) -> str:  # noqa: ANN401 - what a configuration may hold
    return "power" if isinstance(profile, PowerFunction) or "sigma_rel" in profile else "decay"


def _listed(value: Any) -> Any:  # noqa: ANN401 - what a configuration may hold
    """A number stands for a fixed decay, and a single profile for a list of one."""
    items = value if isinstance(value, list | tuple) else [value]
    items = [{"decay": item} if isinstance(item, int | float) else item for item in items]
    for item in items:
        if not isinstance(item, BaseModel) and not (isinstance(item, dict) and item.keys() <= {"decay", "sigma_rel"}):
            raise ValueError(f"a profile is a number, {{decay: 0.999}} or {{sigma_rel: 0.10}}, not {item!r}")
    return items


EmaProfile = Annotated[
    Annotated[FixedDecay, Tag("decay")] | Annotated[PowerFunction, Tag("power")], Discriminator(_kind)
]
EmaProfiles = Annotated[tuple[EmaProfile, ...], BeforeValidator(_listed), Field(min_length=1)]


def profile_names(profiles: Sequence[EmaProfile]) -> list[str]:
    """Names of the profiles.

    Raises:
        ValueError: two profiles have the same name.
    """
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise ValueError(f"ema lists {', '.join(names)}: keep each once")
    return names
