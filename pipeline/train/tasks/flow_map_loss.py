"""The loss of a flow map: the velocity where jumps have no length, and two shorter jumps where they have."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.flow.flow_map import jump_target
from models.flow.path import expand, path_of
from models.flow.spec import FlowSpec
from models.networks.protocol import Conditions, JumpEnd, VelocityNetwork
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery
from pipeline.train.tasks.teacher import taught_velocity
from pipeline.train.time_bins import binned


class FlowMapLoss(nn.Module):
    """Mean velocities from each other (`models/flow/flow_map.py`), and velocities from the data or from a teacher.

    Every rank calls the network three times a batch. A teacher is held whole on each rank, in 32-bit numbers, and is
    no part of the module: it is neither trained nor saved.
    """

    def __init__(self, network: VelocityNetwork, spec: FlowSpec, teacher: VelocityNetwork | None = None) -> None:
        super().__init__()
        assert spec.map is not None
        self.network, self.spec, self.map = network, spec, spec.map
        self.path = path_of(spec)
        self._teacher: Sequence[VelocityNetwork] = () if teacher is None else (teacher.requires_grad_(False).eval(),)

    def forward(self, batch: FlowBatch | FlowQuery) -> dict[str, Tensor]:
        """The mean squared error, also by time bin (see `binned`); without jumps, as in validation, of the velocity.

        For a `FlowQuery`: {"predicted": the prediction, (b c t h w)}.
        """
        if isinstance(batch, FlowQuery):
            network = self.network.given(Conditions(batch.fps, jump=batch.jump))
            return {"predicted": network(batch.x_t, batch.t, batch.caption)}
        at = self.path.at(batch.t, batch.x_1)
        x_t, target = at.point(batch.x_0, batch.x_1), at.velocity(batch.x_0, batch.x_1)
        jump, guidance = batch.jump, batch.guidance

        def mean_velocity(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            end = None if guidance is None else JumpEnd(s, guidance)
            return self.network.given(Conditions(batch.fps, batch.known, jump=end))(x, t, batch.caption)

        if jump is None:
            predicted = mean_velocity(x_t, batch.t, batch.t)
        else:
            for teacher in self._teacher:
                is_guided = self.map.max_guidance > 1
                target = taught_velocity(teacher, batch, x_t, batch.t, is_guided=is_guided)
            by_jumps = jump_target(self.map, mean_velocity, x_t, jump)
            target = torch.where(expand(jump.s > jump.t, x_t), by_jumps, target)
            predicted = mean_velocity(x_t, jump.t, jump.s)
        error = (predicted.to(x_t) - target).square()
        if batch.known is None:
            loss = error.flatten(1).mean(1)
        else:
            share = 1 - batch.known.float().mean((1, 2))
            loss = torch.where(expand(batch.known, error), 0.0, error).flatten(1).mean(1) / share
        return {"total": loss.mean()} | binned(loss, batch.t)
