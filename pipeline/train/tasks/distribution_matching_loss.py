"""The losses of distribution matching: of a student by its teacher and a critic, and of the critic by the student.

One module holds the student and the critic and has one backward pass. The student's loss has the critic's estimate
without a graph, and the critic's loss the student's clips without one, so that neither reaches the other network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.distribution_matching import generator_loss, matching_times, renoised, simulated_states
from models.flow.flow_map import MeanVelocity, flow_map
from models.flow.grid import uniform_grid
from models.flow.objective import matching_loss
from models.flow.path import expand, path_of
from models.flow.spec import FlowSpec
from models.networks.protocol import Conditions, JumpEnd, VelocityNetwork
from pipeline.train.task import ScheduledLoss
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery, Simulation
from pipeline.train.tasks.teacher import taught_velocity
from pipeline.train.time_bins import binned


class DistributionMatchingLoss(ScheduledLoss):
    """Distribution matching distillation (`models/flow/distribution_matching.py`) from a teacher.

    The critic learns in every step, and the student in the first of every `critic_updates`: in the others its network
    has no gradient. The critic is told the guidance scale, as the student is, whose distribution depends on it.

    A teacher is held whole on each rank, in 32-bit numbers, and is no part of the module: it is neither trained nor
    saved. Every rank calls the networks equally often in a step.
    """

    def __init__(
        self, network: VelocityNetwork, critic: VelocityNetwork, spec: FlowSpec, teacher: VelocityNetwork
    ) -> None:
        super().__init__()
        assert spec.matching is not None
        self.network, self.critic, self.matching = network, critic, spec.matching
        self.path = path_of(spec)
        self.grid = uniform_grid(spec.matching.calls, spec.matching.shift)
        self._teacher: Sequence[VelocityNetwork] = (teacher.requires_grad_(False).eval(),)

    @property
    def trains_student(self) -> bool:
        """Whether this step updates the student too."""
        return self.num_updates % self.matching.critic_updates == 0

    def forward(self, batch: FlowBatch | FlowQuery) -> dict[str, Tensor]:
        """The sum of the losses, and each; the critic's also by time bin (see `binned`).

        In validation, the critic's error on clips of the data: the nearer the student's distribution comes to that of
        the data, the nearer this comes to its teacher's error. For a `FlowQuery`: {"predicted": the prediction}.
        """
        if isinstance(batch, FlowQuery):
            network = self.network.given(Conditions(batch.fps, jump=batch.jump))
            return {"predicted": network(batch.x_t, batch.t, batch.caption)}
        if batch.simulation is None:
            critic = self._critic_loss(batch, batch.x_1, batch.x_0, batch.t)
            return {"total": critic.mean()} | binned(critic, batch.t)
        simulation, t = batch.simulation, batch.simulation.critic_t
        made = self._made(batch, simulation)
        critic = self._critic_loss(batch, made.detach(), simulation.critic_noise, t)
        losses = {"critic": critic.mean()}
        if self.trains_student:
            losses["student"] = self._student_loss(batch, made, simulation).mean()
        return {"total": torch.stack(list(losses.values())).sum()} | losses | binned(critic, t)

    def _made(self, batch: FlowBatch, simulation: Simulation) -> Float[Tensor, "b c t h w"]:
        """The clips that the student makes in one call, from where its own calls before it lead."""
        u, start, known = self._mean_velocity(self.network, batch), batch.x_0, batch.known
        if known is not None:
            start = torch.where(expand(known, start), batch.x_1, start)
        times = [batch.at_time(t.expand(len(start))) for t in self.grid[:-1].to(start)]
        x, t = simulated_states(u, self.path, start, times, simulation.call, simulation.between.unbind(1))
        with torch.set_grad_enabled(self.trains_student and torch.is_grad_enabled()):
            return flow_map(u, x, t, torch.ones_like(t))

    def _student_loss(
        self, batch: FlowBatch, made: Float[Tensor, "b c t h w"], simulation: Simulation
    ) -> Float[Tensor, " b"]:
        """By the estimates of the data of a teacher and the critic, at noised clips of the student."""
        t = batch.at_time(matching_times(batch.t.reshape(len(made), -1).amin(1)))  # frames that are given have 1
        with torch.no_grad():
            x_t = renoised(self.path, made, t, simulation.student_noise)
            at, (teacher,) = self.path.at(t, x_t), self._teacher
            real = taught_velocity(teacher, batch, x_t, t, is_guided=self.matching.max_guidance > 1)
            fake = self._mean_velocity(self.critic, batch)(x_t, t, t).to(x_t)
        return generator_loss(made, at.data(x_t, real), at.data(x_t, fake), batch.known)

    def _critic_loss(
        self, batch: FlowBatch, x_1: Float[Tensor, "b c t h w"], x_0: Float[Tensor, "b c t h w"], t: Tensor
    ) -> Float[Tensor, " b"]:
        """Flow matching on `x_1`."""
        x_t = self.path.at(t, x_1).point(x_0, x_1)
        predicted = self._mean_velocity(self.critic, batch)(x_t, t, t)
        return matching_loss(self.path, "velocity", predicted, x_0, x_1, t, known=batch.known)

    def _mean_velocity(self, network: VelocityNetwork, batch: FlowBatch) -> MeanVelocity:
        """Of a network that is told of the batch, and without a scale in the batch, of none."""

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            end = None if batch.guidance is None else JumpEnd(s, batch.guidance)
            return network.given(Conditions(batch.fps, batch.known, jump=end))(x, t, batch.caption)

        return u
