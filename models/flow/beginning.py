"""What a clip begins with other than noise: frames that are given, a clip to vary, a part that is kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.flow.field import Field
from models.flow.grid import full_sequence, starting_at
from models.flow.path import Path
from models.flow.solver import clamped


@dataclass(frozen=True)
class Beginning:
    """Latents, and the time on the path at which each latent frame begins with them.

    At time 1 a frame is given: no solver moves it. At time 0 it is noise. In between, it is varied: it begins with as
    much noise as the path has there, and the less that is, the more of it is kept (Meng et al. 2021, "SDEdit").
    """

    latents: Float[Tensor, "b c t h w"]
    """Normalised. Of frames that begin at 0 and are not kept, they do not matter."""
    times: Float[Tensor, " t"]
    """In [0, 1]."""
    kept: Bool[Tensor, "b 1 1 h w"] | None = None
    """Positions of all frames that end as `latents`, by `clamped`, which is biased: for networks that cannot be told
    of parts of frames. None: there are none.
    """

    @property
    def known(self) -> Bool[Tensor, "1 1 t"] | None:
        """The frames that are given, as networks are told; None: there are none."""
        is_known = self.times == 1
        return is_known[None, None] if bool(is_known.any()) else None

    def state(self, path: Path, noise: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The state to start a solver from; given frames are `latents` bit for bit, and frames at 0 are noise."""
        times = self.times.to(noise)[None, None]
        latents, axis = self.latents.to(noise), times[..., None, None]
        between = path.at(times, noise).point(noise, latents)
        return torch.where(axis == 1, latents, torch.where(axis == 0, path.start(noise), between))

    def grid(self, grid: Tensor) -> Tensor:
        """The part that is left to integrate of a grid (n) or a schedule (n, frames), as one or the other.

        Raises:
            ValueError: all frames are given.
        """
        first = self.times[0].to(grid)
        if grid.ndim == 1 and bool((self.times == self.times[0]).all()) and first < 1:
            return torch.cat([first[None], grid[grid > first]])
        frames = len(self.times)
        return starting_at(full_sequence(grid, frames) if grid.ndim == 1 else grid, self.times.to(grid))

    def field(self, field: Field, noise: Float[Tensor, "b c t h w"]) -> Field:
        """The field that holds what is kept."""
        return field if self.kept is None else clamped(field, self.latents.to(noise), self.kept.to(noise.device), noise)
