"""Workers that share each sample's tokens compute what one worker computes: losses, gradients, weights, previews."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline.engine.zero
from data.stream.loader import Stream
from models.flow.spec import GivenFrames
from models.networks.config import DiTConfig, UNetConfig
from models.networks.rope import rope_angles
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import read_checkpoint_record
from pipeline.distributed.config import WorldSizeError
from pipeline.distributed.process_group import Worker
from pipeline.engine.config import SplitError, check_can_share, check_heads, check_tokens
from pipeline.engine.sequence_parallel import parallelize_sequence
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.flow import FlowTask
from testing.elastic import WatchedTask, fed_samples
from testing.groups import Job, run_jobs
from testing.records import SMALL
from testing.tiny import CONFIG, make_task, write_latents

CASES: dict[str, tuple[str, dict[str, Any]]] = {  # times of a sample, and options of the network
    "clip": ("clip", {}),
    "frame": ("frame", {}),
    "shared": ("frame", {"modulation": "shared"}),
    "low rank": ("clip", {"modulation": "low_rank", "modulation_rank": 4}),
    "frame rate and size": ("frame", {"clip_conditions": ("fps", "size")}),
    "joint": ("frame", {"joint_blocks": 2, "modulation": "shared"}),
    "joint, then cross": ("clip", {"joint_blocks": 1}),
    "known frames": ("clip", {"known_frames": "channels"}),
    "factorised": ("frame", {"attention_pattern": ("space", "time")}),
}

SPLIT = CONFIG.model_copy(update={"sequence_parallel": 2, "schedule": "constant"})


def task_of(folder: Path, case: str = "clip") -> FlowTask:
    """Two blocks whose gates are open, so that attention has a part in the first loss already."""
    fields = vars(make_task(folder))
    times_per, options = CASES[case]
    model = DiTConfig.model_validate(fields["model"].model_dump() | {"depth": 2} | options)
    given = GivenFrames(subset=0.5 if "known_frames" in options else 0.0)
    flow = fields["flow"].model_copy(update={"times_per": times_per, "given": given})
    return FlowTask(**fields | {"model": model, "flow": flow})


def opened(task: FlowTask) -> torch.nn.Module:
    """The network with no weight at zero."""
    torch.manual_seed(3)
    module = task.build()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return module


def loss_and_gradients(worker: Worker, data: Path, results: Path, size: int, case: str) -> None:
    """Gradients of one global batch in plain PyTorch; ZeRO takes the mean over ranks."""
    task = task_of(data, case)
    module = opened(task)
    share, num_shares = worker.rank // size, worker.world_size // size
    if size > 1:
        parallelize_sequence(module, worker.rank, worker.world_size, size)
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=task.seed, rank=share, world_size=num_shares)
    batch = next(stream.batches(0, task.collate, readers=0))
    loss = module(batch)["total"]
    loss.backward()
    torch.distributed.all_reduce(loss.detach())
    gradients = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        torch.distributed.all_reduce(parameter.grad)
        gradients[name] = parameter.grad / worker.world_size
    if worker.rank == 0:
        torch.save({"loss": loss.detach() / worker.world_size, **gradients}, results / f"{worker.world_size}-{size}")


def watched_training(worker: Worker, data: Path, run_dir: Path, size: int, stage: int, settings: dict) -> None:
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    if worker.rank == 0:
        run_dir.mkdir()
    torch.distributed.barrier()
    task = WatchedTask(**vars(task_of(data)), log_dir=run_dir)
    update = {"sequence_parallel": size, "zero_stage": stage, **settings}
    train(task, SPLIT.model_copy(update=update), run_dir, worker)


def go_on_apart(worker: Worker, data: Path, run_dir: Path) -> None:
    train(task_of(data), SPLIT.model_copy(update={"sequence_parallel": 1, "steps": 10}), run_dir, worker)


def parts_and_whole(worker: Worker, heads: int) -> None:
    """Gathered parts equal the whole, and attention among them equals attention on one worker."""
    module = opened(task_of(Path()))
    network: Any = module.get_submodule("network")
    single = network.sequence_plan
    parallelize_sequence(module, worker.rank, worker.world_size, worker.world_size)
    torch.manual_seed(0)
    tokens = torch.randn(2, 3 * 4, 5)
    plan = network.sequence_plan
    part = plan.shard(tokens, 3)
    assert part.shape == (2, 3 * 4 // worker.world_size, 5)
    assert torch.equal(plan.gather(part, 3), tokens)
    angles = rope_angles((3, 2, 2), 8)
    assert torch.equal(plan.shard(angles, 3), plan.shard(angles[None], 3)[0])
    q, k, v = (torch.randn(2, 12, heads, 8) for _ in range(3))
    whole = single.attention(q, k, v)
    parts = plan.attention(*(plan.shard(x.flatten(2), 3).unflatten(2, (heads, 8)) for x in (q, k, v)))
    torch.testing.assert_close(plan.gather(parts.flatten(2), 3).unflatten(2, (heads, 8)), whole)


STAGES = (0, 1, 2, 3)

RUNS: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    # First, because DeepSpeed's linear layers of ZeRO 3 stay in the process, and selective checkpointing excludes them.
    "selective": (2, 2, 2, {"activation_checkpointing": "selective"}),
    **{f"pair-{stage}": (2, 2, stage, {}) for stage in STAGES},
    "one": (1, 1, 2, {}),
    "recomputed": (2, 2, 2, {"activation_checkpointing": True}),
    "accumulated": (2, 2, 2, {"gradient_accumulation_steps": 2}),
}


def gradient_jobs(data: Path, folder: Path, world_size: int, size: int) -> list[Job]:
    for case in CASES:
        (folder / case).mkdir(exist_ok=True)
    return [Job(world_size, loss_and_gradients, (data, folder / case, size, case)) for case in CASES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("sequence"), tmp_path_factory.mktemp("data")
    write_latents(data)
    jobs = [
        Job(world, watched_training, (data, folder / name, size, stage, settings))
        for name, (world, size, stage, settings) in RUNS.items()
    ]
    jobs += [Job(2, go_on_apart, (data, folder / "pair-3"))]
    jobs += gradient_jobs(data, folder, 1, 1) + gradient_jobs(data, folder, 2, 2)
    run_jobs([*jobs, Job(2, parts_and_whole, (4,))], folder)
    return data, folder


def compare_gradients(folder: Path, case: str, layout: str) -> None:
    one, split = (torch.load(folder / case / name) for name in ("1-1", layout))
    assert one.keys() == split.keys()
    for name, expected in one.items():
        assert expected.abs().max() > 0, name  # every parameter has a gradient
        torch.testing.assert_close(split[name], expected, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


def compare_trainings(folder: Path, name: str) -> None:
    for column in ("total", "gradient_norm"):
        curves = [[row[column] for row in read_metrics(folder / run)[: CONFIG.steps]] for run in (name, "one")]
        assert len(curves[0]) == CONFIG.steps
        np.testing.assert_allclose(*curves, rtol=1e-4)
    one, split = (read_checkpoint_record(folder / run / "checkpoints" / "step_0000008") for run in ("one", name))
    assert (split.step, split.cursor) == (one.step, one.cursor)
    num_samples = CONFIG.steps * CONFIG.global_batch
    fed = fed_samples(folder / name, num_samples)
    assert len(fed) == num_samples
    assert fed == fed_samples(folder / "one", num_samples)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_are_those_of_one_worker(runs, case):
    compare_gradients(runs[1], case, "2-2")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "one"])
def test_a_training_is_that_of_one_worker_on_the_same_samples(runs, name):
    compare_trainings(runs[1], name)


@pytest.mark.slow
def test_two_groups_of_two_are_one_worker(runs, tmp_path):
    data, folder = runs
    four = Job(4, watched_training, (data, folder / "groups", 2, 2, {}))
    run_jobs([four, *gradient_jobs(data, folder, 4, 2)], tmp_path)
    compare_trainings(folder, "groups")
    for case in CASES:
        compare_gradients(folder, case, "4-2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recomputed", "selective"])
def test_blocks_computed_again_exchange_again_and_change_no_bit(runs, name):
    _, folder = runs
    rows = [[row["total"] for row in read_metrics(folder / run)] for run in (name, "pair-2")]
    assert rows[0] == rows[1][: CONFIG.steps]


@pytest.mark.slow
def test_a_checkpoint_goes_on_without_groups(runs):
    _, folder = runs
    record = open_checkpoint(folder / "pair-3").record
    assert (record.step, record.cursor) == (10, 10 * CONFIG.global_batch)
    assert [row["step"] for row in read_metrics(folder / "pair-3")] == list(range(1, 11))


def test_what_cannot_be_shared_is_refused_with_what_would_fit():
    with pytest.raises(SplitError, match=r"dit\.model\.heads is 3, but 2 workers .* use 2 heads"):
        check_heads(3, 192, 2)
    with pytest.raises(SplitError, match=r"heads is 3, but 2 workers .* use train\.sequence_parallel=1"):
        check_heads(3, 24, 2)
    check_heads(4, 32, 2)
    unet = UNetConfig(architecture="unet")
    with pytest.raises(
        SplitError, match=r"parallel is 3, but dit\.model\.architecture is unet, which has no tokens to share"
    ):
        check_can_share(unet, 3)
    check_can_share(unet, 1)
    with pytest.raises(SplitError, match=r"bucket b has 6 tokens, but 4 workers .* use train\.sequence_parallel=3"):
        check_tokens("b", 6, 4)
    check_tokens("b", 6, 3)
    worker = Worker(0, 3, torch.device("cpu"))
    with pytest.raises(WorldSizeError, match=r"sequence_parallel is 2, but 3 workers .* use 1"):
        build(make_task(Path()), SPLIT, worker)
    with pytest.raises(WorldSizeError, match=r"global_batch is 4, but 3 groups of workers must divide it: use 3"):
        build(make_task(Path()), SPLIT, Worker(0, 6, torch.device("cpu")))


@pytest.mark.slow
def test_an_autoencoder_has_no_tokens_to_share(runs):
    data, _ = runs
    from models.autoencoder.config import AutoencoderConfig

    module = AutoencoderTask(AutoencoderConfig(), data, 0).build()
    with pytest.raises(SplitError, match="only a velocity network"):
        parallelize_sequence(module, 0, 2, 2)
