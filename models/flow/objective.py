"""The training objective: at which times to learn, and what to regress.

Conditional flow matching (Lipman et al. 2022, eq. 9; Holderrieth & Erives 2025, algorithm 3):

    L = E_{t, x_0, x_1} || v_theta(x_t, t) - (x_1 - x_0) ||^2
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class TimeLaw(BaseModel):
    """Logit-normal times: t = sigmoid(mean + std * n - log(shift)), n ~ N(0, 1).

    The middle of the path, where noise and data are hardest to tell apart, is learnt most often
    (Esser et al. 2024, section 3.1). `shift` > 1 moves times towards noise, for larger clips.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    shift: float = Field(default=1.0, gt=0)

    def times(self, normal: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Turn standard normal numbers into times in (0, 1)."""
        return torch.sigmoid(self.mean + self.std * normal - torch.tensor(self.shift).log())


def flow_matching_loss(
    predicted_velocity: Float[Tensor, "b ..."], velocity: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """Mean squared error of each sample, in float32 whatever the network computed in."""
    return (predicted_velocity.float() - velocity.float()).square().flatten(1).mean(1)
