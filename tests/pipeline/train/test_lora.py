"""Fine-tuning: all weights of a checkpoint, or adapters on it that are all that is learnt."""

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeline.engine.zero
from data.files.checksums import file_sha256
from data.stream.loader import Stream
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.networks.dit import DiT
from pipeline.checkpoint.adapters import BASE_NAME, LoraError, network_weights
from pipeline.checkpoint.config import LoraConfig
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.sampler import ClipSampler
from pipeline.train.base import check_base, open_base
from pipeline.train.loop import train
from pipeline.train.lora import add_adapters
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.tasks.flow import FlowTask
from testing.groups import Job, run_jobs
from testing.records import SMALL
from testing.tiny import CONFIG, TINY_MODEL, make_task, write_latents

LORA = LoraConfig(rank=3, alpha=6, dropout=0.25)

STEPS = CONFIG.model_copy(update={"schedule": "constant"})

STAGES = (0, 1, 2, 3)


def tuned_task(data: Path, lora: LoraConfig | None = LORA) -> FlowTask:
    return replace(make_task(data), base_path=data / BASE_NAME, base="of the test", lora=lora, seed=11)


def train_at_stage(worker: Worker, data: Path, run_dir: Path, stage: int) -> None:
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    train(tuned_task(data), STEPS.model_copy(update={"zero_stage": stage}), run_dir, worker)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained network, exported as a training exports it."""
    data, run_dir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("base")
    write_latents(data)
    small = AutoencoderConfig(latent_channels=4, width=8, deep_width=8)
    weights = Autoencoder(small).state_dict()
    save_file(weights, data / AUTOENCODER_NAME, metadata={"config": small.model_dump_json()})
    train_here(partial(train, make_task(data), STEPS, run_dir), 1)
    export_weights(open_checkpoint(run_dir), data / BASE_NAME)
    return data, run_dir


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """Eight steps of adapters on one worker."""
    data, _ = base
    run_dir = tmp_path_factory.mktemp("tuned")
    train_here(partial(train, tuned_task(data), STEPS, run_dir), 1)
    return data, run_dir


def train_without_dropout(worker: Worker, data: Path, run_dir: Path) -> None:
    """All workers share each sample."""
    task = tuned_task(data, LORA.model_copy(update={"dropout": 0.0}))
    train(task, STEPS.model_copy(update={"sequence_parallel": worker.world_size, "zero_stage": 3}), run_dir, worker)


@pytest.fixture(scope="module")
def groups(base, tmp_path_factory):
    data, _ = base
    folder = tmp_path_factory.mktemp("groups")
    jobs = [Job(2, train_at_stage, (data, folder / str(stage), stage)) for stage in STAGES]
    jobs += [Job(size, train_without_dropout, (data, folder / f"together-{size}")) for size in (2, 1)]
    run_jobs(jobs, folder)
    return folder


@pytest.fixture(scope="module")
def stages(groups):
    return {stage: groups / str(stage) for stage in STAGES}


def answers(network: torch.nn.Module, data: Path) -> torch.Tensor:
    task = make_task(data)
    stream = Stream(task.subsets(), {SMALL.name: 4}, seed=5, rank=0, world_size=1)
    batch = next(stream.batches(0, task.collate, readers=0))
    with torch.no_grad():
        return network.eval()(batch.x_1, batch.t, batch.caption)


def plain(data: Path, weights: dict[str, torch.Tensor]) -> DiT:
    network = DiT(TINY_MODEL, 4)
    network.load_state_dict(weights)
    return network


def adapted(data: Path, run_dir: Path) -> torch.nn.Module:
    """The base with the averaged adapters of a checkpoint in peft's own layers."""
    module = tuned_task(data).build()
    missing, unexpected = module.load_state_dict(load_weights(open_checkpoint(run_dir)), strict=False)
    assert not unexpected
    assert not any("lora_" in name for name in missing)
    return module.get_submodule("network")


def test_adapters_begin_as_the_base_bit_for_bit(base):
    data, run_dir = base
    exported = load_file(data / BASE_NAME)
    fresh = tuned_task(data).build().get_submodule("network")
    assert torch.equal(answers(fresh, data), answers(plain(data, exported), data))
    saved = load_weights(open_checkpoint(run_dir))
    assert {f"network.{name}" for name in exported} == set(saved)
    assert all(torch.equal(exported[name.removeprefix("network.")], weight) for name, weight in saved.items())


def test_only_adapters_are_learnt_averaged_and_saved(tuned):
    data, run_dir = tuned
    checkpoint = open_checkpoint(run_dir)
    learnt = {name for name, p in tuned_task(data).build().named_parameters() if p.requires_grad}
    assert set(checkpoint.record.parameters) == learnt
    assert {name.split(".", 3)[-1] for name in learnt if name.startswith("network.blocks.0.qkv.")} == {
        "qkv.lora_A.default.weight",
        "qkv.lora_B.default.weight",
    }
    assert all("lora_" in name for name in learnt)
    ups = {name: weight for name, weight in load_weights(checkpoint).items() if "lora_B" in name}
    assert all(weight.abs().max() > 0 for weight in ups.values())  # which were zero
    assert file_sha256(checkpoint.folder / BASE_NAME) == file_sha256(data / BASE_NAME)
    assert (checkpoint.folder / BASE_NAME).stat().st_ino == (data / BASE_NAME).stat().st_ino  # no second copy
    losses = [row["total"] for row in read_metrics(run_dir)]
    assert len(set(losses)) == CONFIG.steps


@pytest.mark.parametrize("which", ["ema", "master"])
def test_the_merged_export_answers_as_base_and_adapters_do(tuned, tmp_path, which):
    data, run_dir = tuned
    checkpoint = open_checkpoint(run_dir)
    description = export_weights(checkpoint, tmp_path / "merged.safetensors", which)
    merged, exported = load_file(tmp_path / "merged.safetensors"), load_file(data / BASE_NAME)
    assert merged.keys() == exported.keys()
    changed = {name for name in exported if not torch.equal(exported[name], merged[name])}
    assert "blocks.0.qkv.weight" in changed
    assert changed == {
        name.removeprefix("network.").replace(".lora_B.default", "")
        for name in checkpoint.record.parameters
        if "lora_B" in name
    }
    told = json.loads(description.read_text())
    assert told["trained"]["lora"]["rank"] == 3
    assert told["trained"]["base"] == "of the test"
    if which == "ema":
        expected = answers(adapted(data, run_dir), data)
        torch.testing.assert_close(answers(plain(data, merged), data), expected, rtol=1e-5, atol=1e-5)
        assert (answers(plain(data, exported), data) - expected).abs().max() > 1e-3  # and the base does not


def test_sampling_needs_the_checkpoint_alone(tuned, tmp_path, monkeypatch):
    """Neither peft nor the base's run."""
    data, run_dir = tuned
    folder = shutil.copytree(open_checkpoint(run_dir).folder, tmp_path / "alone")
    monkeypatch.setitem(sys.modules, "peft", None)
    sampler = ClipSampler(open_model(folder), SampleConfig(), torch.device("cpu"))
    torch.testing.assert_close(
        answers(sampler.network, data), answers(plain(data, dict(network_weights(open_checkpoint(run_dir)))), data)
    )


def test_stop_and_resume_is_bit_identical_with_dropout(tuned, tmp_path):
    data, run_dir = tuned
    resumed = tmp_path / "resumed"
    shutil.copytree(run_dir / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    torch.manual_seed(123)  # whatever the process did before
    train_here(partial(train, tuned_task(data), STEPS, resumed), 1)
    assert [row["total"] for row in read_metrics(resumed)] == [row["total"] for row in read_metrics(run_dir)][4:]
    straight, again = (open_checkpoint(folder).record.files for folder in (run_dir, resumed))
    assert straight == again


def test_dropout_drops(tuned, tmp_path):
    data, run_dir = tuned
    without = LORA.model_copy(update={"dropout": 0.0})
    train_here(partial(train, tuned_task(data, without), STEPS.model_copy(update={"steps": 4}), tmp_path), 1)
    one, other = ([row["total"] for row in read_metrics(folder)] for folder in (run_dir, tmp_path))
    assert one[0] == other[0]  # the adapters are zero
    assert one[2] != other[2]


@pytest.mark.slow
def test_every_stage_learns_the_same_adapters(stages):
    expected = load_weights(open_checkpoint(stages[2]))
    curve = [row["total"] for row in read_metrics(stages[2])]
    for stage, run_dir in stages.items():
        assert [row["total"] for row in read_metrics(run_dir)] == pytest.approx(curve, rel=1e-5), stage
        for name, weight in load_weights(open_checkpoint(run_dir)).items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_workers_that_share_each_sample_learn_the_adapters_of_one(groups):
    rows = [read_metrics(groups / f"together-{size}") for size in (2, 1)]
    assert len(rows[0]) == STEPS.steps
    for name in ("total", "gradient_norm"):
        assert [row[name] for row in rows[0]] == pytest.approx([row[name] for row in rows[1]], rel=1e-4)


def test_all_weights_may_be_learnt_from_a_checkpoint(base, tmp_path):
    data, _ = base
    task = tuned_task(data, lora=None)
    started = task.build().get_submodule("network").state_dict()
    assert all(torch.equal(started[name], weight) for name, weight in load_file(data / BASE_NAME).items())
    train_here(partial(train, task, STEPS.model_copy(update={"steps": 4}), tmp_path), 1)
    checkpoint = open_checkpoint(tmp_path)
    assert set(checkpoint.record.files) == {"rank_00000.safetensors", "autoencoder.safetensors"}
    assert not torch.equal(load_weights(checkpoint)["network.final.weight"], started["final.weight"])


def test_adapters_may_start_from_merged_adapters(tuned, tmp_path):
    data, run_dir = tuned
    export_weights(open_checkpoint(run_dir), tmp_path / BASE_NAME)
    again = replace(tuned_task(data), base_path=tmp_path / BASE_NAME).build().get_submodule("network")
    torch.testing.assert_close(answers(again, data), answers(adapted(data, run_dir), data), rtol=1e-5, atol=1e-5)


def test_another_network_names_the_fields_that_differ(base):
    data, run_dir = base
    task, trained = make_task(data), open_base(run_dir)
    check_base(trained, task.model, task.flow, 4, None)
    other = task.model.model_copy(update={"depth": 2, "text": TINY_MODEL.text.model_copy(update={"max_bytes": 8})})
    with pytest.raises(CheckpointError, match=r"dit\.model\.depth is 2 but 1 there; dit\.model\.text\.max_bytes is 8"):
        check_base(trained, other, task.flow, 4, None)
    with pytest.raises(CheckpointError, match=r"dit\.flow\.prediction is data but velocity there"):
        check_base(trained, task.model, task.flow.model_copy(update={"prediction": "data"}), 4, None)
    with pytest.raises(CheckpointError, match=r"dit\.latent_channels is 8 but 4 there"):
        check_base(trained, task.model, task.flow, 8, None)


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LoraError, match=r"pip install 'reelflow\[lora\]'"):
        add_adapters(DiT(TINY_MODEL, 4), LORA)


def test_a_target_that_is_no_layer_is_named_with_those_there_are():
    with pytest.raises(LoraError, match=r"'query' names no linear layer; there are .*cross_query"):
        add_adapters(DiT(TINY_MODEL, 4), LoraConfig(targets=("qkv", "query")))
