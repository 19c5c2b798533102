"""What a teacher tells of a batch: the velocity that a student learns from."""

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.guidance import guide
from models.flow.path import expand
from models.networks.protocol import Conditions, VelocityNetwork
from models.text.caption import joined
from pipeline.train.tasks.flow_batch import FlowBatch


@torch.no_grad()
def taught_velocity(
    teacher: VelocityNetwork, batch: FlowBatch, x_t: Float[Tensor, "b c t h w"], t: Tensor, *, is_guided: bool
) -> Float[Tensor, "b c t h w"]:
    """The teacher's velocity at a state, guided at the scale of each clip; the teacher is moved to where that is.

    Args:
        is_guided: whether any scale differs from 1; otherwise one call is enough.
    """
    network = teacher.to(x_t.device).given(Conditions(batch.fps, batch.known))
    v_cond = network(x_t, t, batch.caption).to(x_t)
    if not is_guided or batch.guidance is None or batch.null is None:
        return v_cond
    v_uncond = network(x_t, t, joined(*[batch.null] * len(x_t))).to(x_t)
    return guide(v_cond, v_uncond, expand(batch.guidance.to(x_t), x_t))
