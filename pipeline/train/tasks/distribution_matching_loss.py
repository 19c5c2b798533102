"""The losses of distribution matching: of a student by its teacher and a critic, and of the critic by the student.

One module holds the student and the critic and has one backward pass. The student's loss has the critic's estimate
without a graph, and the critic's loss the student's clips without one, so that neither reaches the other network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.distribution_matching import generator_loss, matching_times, renoised, simulated_states
from models.flow.flow_map import flow_map
from models.flow.grid import uniform_grid
from models.flow.objective import matching_loss
from models.flow.path import expand, path_of
from models.flow.spec import FlowSpec
from models.networks.protocol import Conditions, JumpEnd, Velocity, VelocityNetwork
from pipeline.train.task import ScheduledLoss
from pipeline.train.tasks.flow_batch import FlowBatch, FlowQuery, Simulation
from pipeline.train.tasks.teacher import taught_velocity
from pipeline.train.time_bins import binned


class DistributionMatchingLoss(ScheduledLoss):
    """Distribution matching distillation (`models/flow/distribution_matching.py`) from a teacher.

    The critic learns in every step, and the student in the first of every `critic_updates`: in the others its network
    has no gradient. The clips of each call and of each guidance scale are to have the teacher's distribution, and not
    only all of them together: the critic is told the scale, and in place of the length of a jump when the call began.

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

        In validation, the critic's error on clips of the data, as if the last call had made them: the nearer the
        student's distribution comes to theirs, the nearer this comes to the teacher's error. For a `FlowQuery`:
        {"predicted": the prediction, (b c t h w)}.
        """
        if isinstance(batch, FlowQuery):
            network = self.network.given(Conditions(batch.fps, jump=batch.jump))
            return {"predicted": network(batch.x_t, batch.t, batch.caption)}
        begins = self.grid[:-1].to(batch.x_1)
        if batch.simulation is None:
            critic = self._critic_loss(batch, batch.x_1, batch.x_0, batch.t, begins[-1:])
            return {"total": critic.mean()} | binned(critic, batch.t)
        simulation, t = batch.simulation, batch.simulation.critic_t
        begun = begins[simulation.call]
        made = self._made(batch, simulation, begins)
        critic = self._critic_loss(batch, made.detach(), simulation.critic_noise, t, begun)
        losses = {"critic": critic.mean()}
        if self.trains_student:
            losses["student"] = self._student_loss(batch, made, simulation.student_noise, begun).mean()
        return {"total": torch.stack(list(losses.values())).sum()} | losses | binned(critic, t)

    def _made(
        self, batch: FlowBatch, simulation: Simulation, begins: Float[Tensor, " calls"]
    ) -> Float[Tensor, "b c t h w"]:
        """The clips that the student makes in one call, from where its own calls before it lead."""

        def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return self._told(self.network, batch, s)(x, t, batch.caption)

        start, known = batch.x_0, batch.known
        if known is not None:
            start = torch.where(expand(known, start), batch.x_1, start)
        times = [batch.at_time(t.expand(len(start))) for t in begins]
        x, t = simulated_states(u, self.path, start, times, simulation.call, simulation.between.unbind(1))
        with torch.set_grad_enabled(self.trains_student and torch.is_grad_enabled()):
            return flow_map(u, x, t, torch.ones_like(t))

    def _student_loss(
        self,
        batch: FlowBatch,
        made: Float[Tensor, "b c t h w"],
        noise: Float[Tensor, "b c t h w"],
        begun: Float[Tensor, " b"],
    ) -> Float[Tensor, " b"]:
        """By the estimates of the data of a teacher and the critic, at noised clips of the student."""
        t = batch.at_time(matching_times(batch.t.reshape(len(made), -1).amin(1)))  # frames that are given have 1
        with torch.no_grad():
            x_t = renoised(self.path, made, t, noise)
            at, (teacher,) = self.path.at(t, x_t), self._teacher
            real = taught_velocity(teacher, batch, x_t, t, is_guided=self.matching.max_guidance > 1)
            fake = self._critic_velocity(batch, x_t, t, begun)
        return generator_loss(made, at.data(x_t, real), at.data(x_t, fake), batch.known)

    def _critic_loss(
        self,
        batch: FlowBatch,
        x_1: Float[Tensor, "b c t h w"],
        x_0: Float[Tensor, "b c t h w"],
        t: Tensor,
        begun: Float[Tensor, " clips"],
    ) -> Float[Tensor, " b"]:
        """Flow matching on `x_1`."""
        predicted = self._critic_velocity(batch, self.path.at(t, x_1).point(x_0, x_1), t, begun)
        return matching_loss(self.path, "velocity", predicted, x_0, x_1, t, known=batch.known)

    def _critic_velocity(
        self, batch: FlowBatch, x_t: Float[Tensor, "b c t h w"], t: Tensor, begun: Float[Tensor, " clips"]
    ) -> Float[Tensor, "b c t h w"]:
        """Of clips whose last call began at a time, of each or one for all."""
        told = t + begun.to(t).reshape(-1, *[1] * (t.ndim - 1))
        return self._told(self.critic, batch, told)(x_t, t, batch.caption).to(x_t)

    def _told(self, network: VelocityNetwork, batch: FlowBatch, end: Tensor) -> Velocity:
        """A network that is told of a batch; without scales in it, as in validation, of no guidance."""
        scales = end.new_ones(1) if batch.guidance is None else batch.guidance
        return network.given(Conditions(batch.fps, batch.known, jump=JumpEnd(end, scales)))
