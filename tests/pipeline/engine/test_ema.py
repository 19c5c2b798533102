"""Averages of the weights: the closed form of their profiles, and that every ZeRO stage keeps the same ones."""

import json
import shutil
from functools import partial
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pipeline.engine.zero
from data.files.checksums import file_sha256
from data.stream.loader import Stream
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.checkpoint.record import CheckpointError, FileRecord, rank_file, read_checkpoint_record
from pipeline.distributed.collectives import from_every_rank
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.ema_profile import FixedDecay, PowerFunction
from pipeline.run import randomness
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from testing.averages import shares
from testing.groups import Job, run_jobs
from testing.tiny import CONFIG, make_task, write_latents

STAGES = (0, 1, 2, 3)

PROFILES = (FixedDecay(decay=0.9), PowerFunction(sigma_rel=0.05), PowerFunction(sigma_rel=0.2))

AVERAGED = CONFIG.model_copy(update={"ema": PROFILES})


def average_at_stage(worker: Worker, data: Path, run_dir: Path, stage: int) -> None:
    """Averages of weights that take the same random walk at every stage; rank 0 saves them as whole parameters.

    They are set and not trained: a product of matrices has other last bits where the memory is aligned otherwise.
    """
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0  # stage 3 with every parameter partitioned, however small
    trainer, ema = build(make_task(data), AVERAGED.model_copy(update={"zero_stage": stage}), worker)
    for update in range(1, 7):
        for held in trainer.local_fragments:
            values = randomness.normal(update, "wander", [held.name], tuple(trainer.shapes[held.name])).flatten()
            held.master.copy_(values[held.start :][: held.master.numel()])
        ema.update(update)
    whole = {}
    parts = {
        name: {f.name: (f.start, average[f.name]) for f in trainer.fragments} for name, average in ema.averages.items()
    }
    for own in from_every_rank(parts):
        for name, fragments in own.items():
            for parameter, (start, values) in fragments.items():
                flat = whole.setdefault(
                    f"{name}/{parameter}", torch.full((prod(trainer.shapes[parameter]),), torch.nan)
                )
                flat[start : start + values.numel()] = values
    if worker.rank == 0:
        save_file(whole, run_dir / f"stage-{stage}.safetensors")


def train_averaged(worker: Worker, data: Path, run_dir: Path) -> None:
    train(make_task(data), AVERAGED, run_dir, worker)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averages")
    data = folder / "data"
    data.mkdir()
    write_latents(data)
    jobs = [Job(2, average_at_stage, (data, folder, stage)) for stage in STAGES]
    run_jobs([*jobs, Job(2, train_averaged, (data, folder / "trained"))], folder)
    return folder


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_keeps_the_same_averages_to_the_bit(runs, stage):
    names = [profile.name for profile in PROFILES]
    assert names == ["decay-0.9", "power-0.05", "power-0.20"]
    one, other = (load_file(runs / f"stage-{s}.safetensors") for s in (0, stage))
    assert {name.split("/")[0] for name in one} == set(names)
    assert all(torch.equal(one[name], other[name]) for name in one)  # and nothing is missing: that would be a NaN


def test_averages_are_the_sums_that_the_profiles_say(runs):
    """Of the weights after each update, kept here and added in double precision."""
    found = {}

    def look(worker: Worker) -> None:
        task = make_task(runs / "data")
        trainer, ema = build(task, AVERAGED, worker)
        kept = [{f.name: f.master.double().clone() for f in trainer.fragments}]
        subset = task.subsets()[0]
        stream = Stream([subset], {subset.bucket.name: 4}, seed=7, rank=0, world_size=1)
        batches = stream.batches(0, task.collate, readers=0)
        for update in range(1, 7):
            trainer.step([next(batches)], 3e-3)
            ema.update(update)
            kept.append({f.name: f.master.double().clone() for f in trainer.fragments})
        batches.close()
        for profile in PROFILES:
            weights = shares(profile, 6)
            for name, average in ema.averages[profile.name].items():
                expected = sum(w * weights_after[name] for w, weights_after in zip(weights, kept, strict=True))
                torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)
            found[profile.name] = ema.averages[profile.name]
        assert ema.of() is ema.averages["decay-0.9"]

    train_here(look, 1)
    names = list(found["decay-0.9"])
    assert any(not torch.equal(found["power-0.05"][name], found["power-0.20"][name]) for name in names)


def test_weights_are_chosen_by_name(runs, tmp_path):
    checkpoint = open_checkpoint(runs / "trained")
    assert checkpoint.record.averages == ["decay-0.9", "power-0.05", "power-0.20"]
    first, named = load_weights(checkpoint, "ema"), load_weights(checkpoint, "decay-0.9")
    assert all(torch.equal(first[name], named[name]) for name in first)
    about = json.loads(export_weights(checkpoint, tmp_path / "w.safetensors", "power-0.20").read_text())
    assert about["weights"] == "power-0.20"
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        for name, expected in load_weights(checkpoint, "power-0.20").items():
            assert torch.equal(file.get_tensor(name.removeprefix("network.")), expected)
    with pytest.raises(CheckpointError, match=r"no weights named 'power-0\.3': there are master, decay-0\.9, power-0"):
        load_weights(checkpoint, "power-0.3")


def go_on(data: Path, run_dir: Path, **changes) -> None:
    config = CONFIG.model_copy(update={"schedule": "constant", "steps": 4} | changes)
    train_here(partial(train, make_task(data), config, run_dir), 1)


def test_an_average_that_was_not_kept_begins_with_the_weights(runs, tmp_path):
    go_on(runs / "data", tmp_path, ema=(FixedDecay(decay=0.995),))
    before = load_weights(open_checkpoint(tmp_path), "master")
    go_on(runs / "data", tmp_path, steps=5)
    assert "the average power-0.10 begins here" in read_events(tmp_path)[-2].note
    master, power = (load_weights(open_checkpoint(tmp_path), which) for which in ("master", "power-0.10"))
    for name, start in before.items():  # one update later
        expected = start.lerp(master[name], PowerFunction(sigma_rel=0.10).weight(5))
        assert torch.equal(power[name], expected)


def test_a_checkpoint_of_a_program_with_one_average_goes_on(runs, tmp_path):
    """Its only average was stored as `ema`, and checkpoint.json did not name it."""
    new, old = tmp_path / "new", tmp_path / "old"
    go_on(runs / "data", new, ema=(FixedDecay(decay=0.995),))
    shutil.copytree(new, old)
    folder = open_checkpoint(old).folder
    with safe_open(folder / rank_file(0), framework="pt") as file:
        tensors = {name.replace("decay-0.995/", "ema/"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, folder / rank_file(0), metadata=metadata)
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["averages"], record["checksum"]
    path = folder / rank_file(0)
    record["files"][rank_file(0)] = FileRecord(num_bytes=path.stat().st_size, sha256=file_sha256(path)).model_dump()
    (folder / "checkpoint.json").write_text(json.dumps(record))
    assert read_checkpoint_record(folder).averages == ["ema"]
    for run_dir in (new, old):
        go_on(runs / "data", run_dir, steps=6, ema=(FixedDecay(decay=0.995),))
    assert "begins here" not in read_events(old)[-2].note
    one, other = (load_weights(open_checkpoint(run_dir)) for run_dir in (new, old))
    assert all(torch.equal(one[name], other[name]) for name in one)
