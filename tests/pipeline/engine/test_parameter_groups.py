"""Two networks in one engine, each with its own settings of AdamW."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.distributed.process_group import Worker
from pipeline.engine.config import ZeroStage
from pipeline.engine.parameter_groups import EVERY, ParameterGroup, is_due, optimizer_groups, updates_of
from pipeline.engine.zero import ZeroTrainer
from testing.groups import Job, run_jobs

STEPS, BATCH, LEARNING_RATE = 6, 4, 1e-2

GROUPS = (
    ParameterGroup(weight_decay=0.1, betas=(0.9, 0.99), prefix="generator.", every=2),
    ParameterGroup(weight_decay=0.0, betas=(0.5, 0.9), prefix="discriminator.", learning_rate_scale=0.25),
)


class TwoNetworks(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 5))
        # 141 parameters: an odd number, which DeepSpeed refuses as the size of a bucket
        self.discriminator = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1))

    def forward(self, noise: Tensor) -> dict[str, Tensor]:
        made = self.generator(noise)
        return {"total": (self.discriminator(made) - 1).square().mean() + made.square().mean()}


def two_networks() -> TwoNetworks:
    torch.manual_seed(0)
    return TwoNetworks()


def batches() -> Tensor:
    return torch.randn(STEPS, BATCH, 3, generator=torch.Generator().manual_seed(1))


LOOSE, TIGHT = 1e6, 0.05  # norms that gradients are clipped to: none is, or each network's always is


def train_two(worker: Worker, folder: Path, stage: ZeroStage, clip_norm: float) -> None:
    module = two_networks()
    trainer = ZeroTrainer(
        module,
        GROUPS,
        device=worker.device,
        dtype=None,
        stage=stage,
        micro_batch=BATCH // worker.world_size,
        clip_norm=clip_norm,
    )
    for batch in batches():
        trainer.step([batch.chunk(worker.world_size)[worker.rank]], LEARNING_RATE)
    torch.save(module.state_dict() | {"norm": trainer.guard.norm}, folder / f"{clip_norm}-{stage}-{worker.rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cells = [(stage, clip_norm) for stage in (0, 1, 2) for clip_norm in (LOOSE, TIGHT)]
    run_jobs([Job(2, train_two, (folder, *cell)) for cell in cells], folder)
    return folder


@pytest.mark.parametrize("clip_norm", [LOOSE, TIGHT])
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_each_network_is_clipped_and_updated_by_itself(trained, stage, rank, clip_norm):
    module = two_networks()
    adams = []
    for group, network in zip(GROUPS, (module.generator, module.discriminator), strict=True):
        decayed = {"params": [p for p in network.parameters() if p.ndim >= 2], "weight_decay": group.weight_decay}
        others = {"params": [p for p in network.parameters() if p.ndim < 2], "weight_decay": 0.0}
        learning_rate = LEARNING_RATE * group.learning_rate_scale
        adams.append(torch.optim.AdamW([decayed, others], lr=learning_rate, betas=group.betas, eps=1e-8))
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    norms: list[Tensor] = []
    for number, batch in enumerate(batches()):
        module.zero_grad()
        module(batch)["total"].backward()
        networks = (module.generator, module.discriminator)
        due = [turn for turn, group in enumerate(GROUPS) if number % group.every == 0]
        norms = [nn.utils.clip_grad_norm_(networks[turn].parameters(), clip_norm) for turn in due]
        assert all(norm > TIGHT for norm in norms)
        for turn in due:
            adams[turn].step()
    weights = torch.load(trained / f"{clip_norm}-{stage}-{rank}.pt", weights_only=True)
    assert float(weights["norm"]) == pytest.approx(float(torch.stack(norms).norm()), rel=1e-5)
    for name, weight in module.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-6)
        assert not torch.allclose(weight, before[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_updates_of_a_group_are_its_turns_so_far(every):
    turns = [is_due({EVERY: every}, number) for number in range(12)]
    assert [updates_of(every, number) for number in range(13)] == [sum(turns[:number]) for number in range(13)]
    assert turns[0]


def test_one_group_of_all_parameters_is_what_a_single_network_has():
    module = two_networks()
    module.discriminator[0].requires_grad_(False)
    decayed, others = optimizer_groups(module, [ParameterGroup(weight_decay=0.01, betas=(0.9, 0.99))])
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert list(map(id, decayed["params"])) == [id(p) for p in trainable if p.ndim >= 2]
    assert list(map(id, others["params"])) == [id(p) for p in trainable if p.ndim < 2]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


def test_weight_decay_goes_by_the_whole_parameter_where_a_rank_holds_a_part_of_it():
    module: Any = nn.Linear(3, 2)
    for parameter in module.parameters():  # as stage 3 leaves a parameter
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    decayed, others = optimizer_groups(module, [ParameterGroup(weight_decay=0.01, betas=(0.9, 0.99))])
    assert decayed["params"][0] is module.weight
    assert others["params"][0] is module.bias


@pytest.mark.parametrize("prefixes", [("generator.",), ("generator.", "")])
def test_a_parameter_in_no_group_or_in_two_is_refused(prefixes):
    groups = [ParameterGroup(weight_decay=0.0, betas=(0.9, 0.99), prefix=prefix) for prefix in prefixes]
    name = "discriminator.0.weight" if len(prefixes) == 1 else "generator.0.weight"
    with pytest.raises(ValueError, match=re.escape(f"parameter {name} must be in one group")):
        optimizer_groups(two_networks(), groups)
