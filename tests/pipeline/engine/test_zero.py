"""ZeRO 0 to 3 are one algorithm: the loss curve is that of plain PyTorch AdamW on one process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pipeline.engine.zero
from data.stream.loader import Stream
from pipeline.distributed.process_group import Worker
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.schedule import learning_rate
from testing.groups import Job, run_jobs
from testing.paths import GOLDEN_DIR
from testing.records import SMALL
from testing.tiny import CONFIG, make_task, write_latents

GOLDEN = GOLDEN_DIR / "loss_curve.json"

FIFTY_STEPS = CONFIG.model_copy(update={"steps": 50, "checkpoint_every_steps": 50})


def train_at_stage(worker: Worker, folder: Path, run_dir: Path, stage: int) -> None:
    """The product's loop; stage 3 with every parameter partitioned, however small."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    train(make_task(folder), FIFTY_STEPS.model_copy(update={"zero_stage": stage}), run_dir, worker)


def plain_losses(folder: Path) -> list[float]:
    """The same training in a dozen lines of PyTorch."""
    task = make_task(folder)
    torch.manual_seed(task.seed)
    module = task.build()
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": FIFTY_STEPS.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=FIFTY_STEPS.betas, eps=1e-8)
    stream = Stream(task.subsets(), {SMALL.name: FIFTY_STEPS.global_batch}, seed=task.seed, rank=0, world_size=1)
    losses = []
    for step, batch in zip(range(FIFTY_STEPS.steps), stream.batches(0, task.collate), strict=False):
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, FIFTY_STEPS)
        loss = module(batch)["total"]
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), FIFTY_STEPS.clip_norm)
        adam.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Loss and gradient norm of 50 steps at each stage, on two workers and, where that differs, on one."""
    folder, data = tmp_path_factory.mktemp("stages"), tmp_path_factory.mktemp("data")
    write_latents(data)
    cells = [(0, 1), (3, 1), (0, 2), (1, 2), (2, 2), (3, 2)]
    run_jobs([Job(w, train_at_stage, (data, folder / f"{s}-{w}", s)) for s, w in cells], folder)
    return data, {(stage, world): read_metrics(folder / f"{stage}-{world}") for stage, world in cells}


def test_every_stage_has_the_loss_curve_of_plain_adamw(curves):
    data, rows = curves
    plain = plain_losses(data)
    for cell, curve in rows.items():
        np.testing.assert_allclose([row["total"] for row in curve], plain, rtol=1e-5, err_msg=f"stage, workers {cell}")
    # Kept from one commit to the next; other processors add in another order.
    np.testing.assert_allclose(plain, json.loads(GOLDEN.read_text(encoding="utf-8")), rtol=1e-4)


def test_stages_on_the_same_workers_agree_on_the_norm_of_the_gradient(curves):
    _, rows = curves
    for stage in (0, 1, 3):
        norms = [[row["gradient_norm"] for row in rows[which, 2]] for which in (stage, 2)]
        np.testing.assert_allclose(*norms, rtol=1e-4)
