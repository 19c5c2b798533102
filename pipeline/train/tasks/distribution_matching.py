"""Train a student and its critic by distribution matching on latents."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import nn

from data.stream.loader import Sample
from models.flow.objective import stratified, training_times
from models.flow.spec import DistributionMatchingSpec
from pipeline.engine.parameter_groups import ParameterGroup
from pipeline.engine.placement import WHOLE, Placement
from pipeline.run import randomness
from pipeline.train.config import TrainConfig
from pipeline.train.tasks.distribution_matching_loss import DistributionMatchingLoss
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch, Simulation


@dataclass(frozen=True)
class DistributionMatchingTask(FlowTask):
    """Train a student of the network of `base_path`; the flow has `matching`.

    Of the latents it reads captions, shapes and frames that are given: what the student makes is compared to what the
    teacher knows, not to clips.
    """

    @classmethod
    def of(cls, task: FlowTask) -> Self:
        """The training of `task`, by distribution matching."""
        return cls(**{field.name: getattr(task, field.name) for field in fields(FlowTask)})

    @property
    def _matching(self) -> DistributionMatchingSpec:
        assert self.flow.matching is not None
        return self.flow.matching

    def build(self, placement: Placement = WHOLE) -> nn.Module:
        """The student and the critic inside their losses, both with the weights of the teacher.

        Raises:
            CheckpointError: as `FlowTask.build`.
        """
        teacher = self.teacher()
        student, critic = self.student(teacher, placement), self.student(teacher, placement)
        return DistributionMatchingLoss(student, critic, self.flow, teacher)

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """That of the student, which is updated less often, and that of the critic."""
        group = ParameterGroup(weight_decay=config.weight_decay, betas=config.betas)
        return [
            replace(group, prefix="network.", every=self._matching.critic_updates),
            replace(group, prefix="critic."),
        ]

    def collate(self, samples: list[Sample]) -> FlowBatch:
        """As `FlowTask.collate`, with what a student's sampling is simulated with: functions of the positions too."""
        batch, spec = super().collate(samples), self._matching
        positions = [sample.position for sample in samples]
        drawn = randomness.uniform(self.seed, "distribution-matching", positions, (2,))
        shape = tuple(batch.x_1.shape[1:])
        noises = randomness.normal(self.seed, "distribution-matching-noise", positions, (spec.calls + 1, *shape))
        offset = randomness.uniform(self.seed, "critic-time", [0]).item()
        critic_t = training_times(self.flow.times, stratified(torch.tensor(positions), offset)).float()
        simulation = Simulation(
            call=(drawn[:, 0] * spec.calls).long(),
            between=noises[:, :-2],
            student_noise=noises[:, -2],
            critic_noise=noises[:, -1],
            critic_t=batch.at_time(critic_t),
        )
        guidance = 1 + (spec.max_guidance - 1) * drawn[:, 1]
        return replace(batch, simulation=simulation, guidance=guidance, null=self._null_caption())
