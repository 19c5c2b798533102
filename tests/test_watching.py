"""Watching a training: what it tells is right, and nothing of what it does changes."""

import io
import json
import shutil
import struct
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pipeline.engine.zero
from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER
from data.dataset.index import read_index, write_index
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.stream.loader import Stream
from data.video.codec import decode_clip, encode_clip, encode_gif
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.networks.config import DiTConfig
from models.text.bytes import CaptionTokens
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.distributed.collectives import from_every_rank
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import train_here
from pipeline.engine.ema import averaged_weights
from pipeline.run import randomness
from pipeline.run.weight_names import Weights
from pipeline.train.build import build
from pipeline.train.loop import train
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.previews import fixed_prompts
from pipeline.train.monitor.throughput import RankPace, flops_per_clip, peak_flops_per_second, slowest
from pipeline.train.monitor.validation import VALIDATION_NAME, ValidationRow, held_out, read_validation
from pipeline.train.monitor.wandb_run import WandbError
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.flow_preview import FlowQuery
from pipeline.train.time_bins import bin_means, binned
from testing.groups import Job, run_jobs
from testing.records import SMALL, made_up_clip
from testing.tiny import CONFIG, WEIGHTS, make_task

STILL = Bucket(num_frames=1, height=32, width=32, fps=8)
STAGES = (0, 1, 2, 3)
WATCHED = CONFIG.model_copy(
    update={
        "validate_every_steps": 3,
        "validation_clips": 7,
        "validate_weights": ("raw", "ema", "power-0.10"),
        "sample_every_steps": 4,
        "sample_weights": "power-0.10",
    }
)


def write_two_splits(folder: Path) -> None:
    """Twenty latents of two shapes; every third clip is held out."""
    folder.mkdir(parents=True)
    samples = []
    for number in range(20):
        bucket = STILL if number % 4 == 0 else SMALL
        split = "validation" if number % 3 == 0 else "train"
        record = made_up_clip(number, bucket).model_copy(update={"split": split})
        shape = (4, 1 if bucket == STILL else 2, 4, 4)
        samples.append((record, save({"mean": randomness.normal(0, "test", [number], shape)[0]})))
    _, rows = write_shard(folder / "shard-00000.tar", samples, LATENT_MEMBER)
    write_index(folder, rows)
    torch.manual_seed(3)
    config = AutoencoderConfig(latent_channels=4, width=8, deep_width=8)
    weights = Autoencoder(config).state_dict()
    save_file(weights, folder / "autoencoder.safetensors", metadata={"config": config.model_dump_json()})


def task_of(folder: Path):
    return replace(make_task(folder), buckets=(SMALL, STILL))


def train_watched(worker: Worker, data: Path, run_dir: Path, stage: int, config) -> None:
    """The product's loop; stage 3 with every parameter cut, however small."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    train(task_of(data), config.model_copy(update={"zero_stage": stage}), run_dir, worker)


def whole_average(task, trainer, ema, which):
    """A plain module with averaged weights, put together from what every rank has of them."""
    module, average = task.build(), ema.of(which)
    parts = {fragment.name: (fragment.start, average[fragment.name]) for fragment in trainer.fragments}
    for own in from_every_rank(parts):
        for name, (start, values) in own.items():
            module.get_parameter(name).data.view(-1)[start : start + values.numel()] = values
    return module


class StopHereError(Exception):
    """Raised on purpose."""


def compare_average(worker: Worker, data: Path, stage: int) -> None:
    """Inside the block the module is that of the averaged weights; afterwards nothing has changed, nor in training."""
    pipeline.engine.zero.PERSISTENT_PARAMETERS = 0
    task = task_of(data)
    trainer, ema = build(task, CONFIG.model_copy(update={"zero_stage": stage}), worker)
    stream = Stream(
        task.subsets(), {SMALL.name: 4, STILL.name: 4}, seed=7, rank=worker.rank, world_size=worker.world_size
    )
    batches = stream.batches(0, task.prepare, readers=0)
    for step in range(1, 4):
        trainer.step([next(batches)], 3e-3)
        ema.update(step)
    probe = next(batches)
    before = {held.name: held.master.clone() for held in trainer.holdings}
    raw = trainer.evaluate(probe)
    averages = {}
    for which in ("ema", "power-0.10"):
        with torch.no_grad():
            expected = whole_average(task, trainer, ema, which).eval()(probe)
        with averaged_weights(trainer, ema, which):
            averages[which] = trainer.evaluate(probe)
        assert all(torch.equal(averages[which][name], expected[name]) for name in expected)
    with pytest.raises(StopHereError), averaged_weights(trainer, ema):
        raise StopHereError
    again = trainer.evaluate(probe)
    assert len({float(losses["total"]) for losses in (*averages.values(), raw)}) == 3
    assert all(torch.equal(again[name], raw[name]) for name in raw)
    assert all(torch.equal(held.master, before[held.name]) for held in trainer.holdings)
    assert trainer.engine.module.training
    batches.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trainings at every stage on two workers, watched and not, and watched ones on one worker."""
    folder = tmp_path_factory.mktemp("watching")
    data = folder / "data"
    write_two_splits(data)
    unwatched = CONFIG.model_copy(update={"validation_clips": 0, "checkpoint_every_steps": 8})
    jobs = [Job(2, train_watched, (data, folder / f"watched-{s}", s, WATCHED)) for s in STAGES]
    jobs += [Job(2, train_watched, (data, folder / f"plain-{s}", s, unwatched)) for s in STAGES]
    jobs += [Job(w, compare_average, (data, s)) for w in (1, 2) for s in STAGES]
    jobs += [Job(1, train_watched, (data, folder / "alone", 2, WATCHED))]
    together = WATCHED.model_copy(update={"sequence_parallel": 2})
    jobs += [Job(2, train_watched, (data, folder / "together", 3, together))]
    run_jobs(jobs, folder)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_watching_does_not_change_the_training_by_one_bit(runs, stage):
    for which in WEIGHTS:
        plain, watched = (
            load_weights(open_checkpoint(runs / f"{kind}-{stage}"), which) for kind in ("plain", "watched")
        )
        assert all(torch.equal(plain[name], watched[name]) for name in plain)
    losses = [[row["total"] for row in read_metrics(runs / f"{kind}-{stage}")] for kind in ("plain", "watched")]
    assert losses[0] == losses[1]
    assert not (runs / f"plain-{stage}" / VALIDATION_NAME).exists()


def test_validation_has_a_line_per_step_weights_bucket_and_bin(runs):
    lines = read_validation(runs / "watched-2")
    cells = [(line.step, line.weights, line.bucket, line.time_bin) for line in lines]
    bins = (None, 0, 1, 2, 3)
    expected = {
        (step, weights, bucket.name, time_bin)
        for step in (0, 3, 6, 8)
        for weights in WATCHED.validate_weights
        for bucket in (SMALL, STILL)
        for time_bin in bins
    }
    assert len(cells) == len(expected)
    assert set(cells) == expected
    assert {line.bucket: line.num_clips for line in lines} == {SMALL.name: 5, STILL.name: 2}
    for line in lines:
        parts = [
            part.loss for part in lines if replace(part, time_bin=None, loss=0) == replace(line, time_bin=None, loss=0)
        ]
        if line.time_bin is None:
            assert line.loss == pytest.approx(sum(parts[1:]) / 4, rel=1e-6)


def test_validation_is_that_of_the_saved_weights(runs):
    """The lines after the last step, computed again by a plain module from the checkpoint."""
    task, rows = task_of(runs / "data"), held_out(read_index(runs / "data", "validation"), 7)
    assert all(row.split == "validation" for row in rows)
    reader, checkpoint = PayloadReader(runs / "data"), open_checkpoint(runs / "watched-2")
    for weights, saved in zip(WATCHED.validate_weights, WEIGHTS, strict=True):
        module = task.build()
        module.load_state_dict(load_weights(checkpoint, saved))
        losses = defaultdict(list)
        for row in rows:
            batch = task.validation_batch(row, reader.read(row))
            assert (batch.t * 4).long().tolist() == [0, 1, 2, 3]
            with torch.no_grad():
                x_t = module.path.at(batch.t, batch.x_1).point(batch.x_0, batch.x_1)
                error = (module.network(x_t, batch.t, batch.caption) - (batch.x_1 - batch.x_0)).square()
            for time_bin, loss in enumerate(error.flatten(1).mean(1).tolist()):
                losses[row.bucket, time_bin].append(loss)
        lines = [line for line in read_validation(runs / "watched-2") if (line.step, line.weights) == (8, weights)]
        for line in lines:
            if line.time_bin is not None:
                own = losses[line.bucket, line.time_bin]
                assert line.loss == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_validation_knows_nothing_of_the_number_of_workers_and_the_stage(runs):
    def of(run: str) -> list[ValidationRow]:
        return read_validation(runs / run)

    first = [line for line in of("alone") if line.step == 0]
    for stage in STAGES:  # of the same weights, the same numbers
        assert [line for line in of(f"watched-{stage}") if line.step == 0] == first
        for one, two in zip(of("alone"), of(f"watched-{stage}"), strict=True):
            assert replace(one, loss=0) == replace(two, loss=0)
            assert one.loss == pytest.approx(two.loss, rel=1e-4)


def test_validation_of_clips_that_workers_share_is_that_of_one_worker(runs):
    lines = {run: read_validation(runs / run) for run in ("alone", "together")}
    for one, two in zip(*lines.values(), strict=True):
        assert replace(one, loss=0) == replace(two, loss=0)
        assert one.loss == pytest.approx(two.loss, rel=1e-4)


def test_after_a_fallback_the_lines_are_those_of_an_undisturbed_run(runs, tmp_path):
    straight, resumed = runs / "alone", tmp_path / "resumed"
    shutil.copytree(straight / "checkpoints" / "step_0000004", resumed / "checkpoints" / "step_0000004")
    (resumed / "latest").write_text("step_0000004\n")
    lines = (straight / VALIDATION_NAME).read_text().splitlines(keepends=True)
    later = [json.dumps(json.loads(line) | {"loss": -1.0}) + "\n" for line in lines if json.loads(line)["step"] > 4]
    kept = lines[: len(lines) - len(later)]
    assert len(kept) == len(later) == 60
    (resumed / VALIDATION_NAME).write_text("".join(kept + later) + '{"step": 9, "wei')
    train_here(partial(train_watched, data=runs / "data", run_dir=resumed, stage=2, config=WATCHED), 1)
    assert (resumed / VALIDATION_NAME).read_text() == "".join(lines)


def test_held_out_clips_are_shared_out_over_the_buckets(runs):
    rows = read_index(runs / "data", "validation")
    chosen = held_out(rows[::-1], 4)
    assert [row.bucket for row in chosen] == [STILL.name, SMALL.name, STILL.name, SMALL.name]
    assert held_out(rows, 4) == chosen
    assert len(held_out(rows, 100)) == len(rows) == 7


def test_losses_by_time_are_means_over_the_samples_of_all_ranks(runs):
    task = task_of(runs / "data")
    stream = Stream(task.subsets(), {SMALL.name: 4, STILL.name: 32}, seed=7, rank=0, world_size=1)
    row, batch = read_metrics(runs / "watched-2")[0], next(stream.batches(0, task.prepare, readers=0))
    torch.manual_seed(7)
    module = task.build()
    x_t = module.path.at(batch.t, batch.x_1).point(batch.x_0, batch.x_1)
    error = module.network(x_t, batch.t, batch.caption) - (batch.x_1 - batch.x_0)
    losses, number = error.square().flatten(1).mean(1), (batch.t * 4).long()
    for time_bin in range(4):
        own = losses[number == time_bin]
        if len(own):
            assert row[f"loss_t{time_bin}"] == pytest.approx(own.mean().item(), rel=1e-5)
        else:
            assert f"loss_t{time_bin}" not in row
    assert not [name for name in row if name.startswith("share_")]


def test_bins_of_time():
    loss, t = torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([0.0, 0.24, 0.5, 1.0])
    values = {name: value.item() for name, value in binned(loss, t).items()}
    assert bin_means(values | {"total": 2.75}) == {"total": 2.75, "loss_t0": 1.5, "loss_t2": 5.0, "loss_t3": 3.0}
    of_frames = torch.tensor([[0.0, 1.0], [0.9, 1.0]])[:, None]  # b 1 t
    assert {n for n, v in binned(loss[:2], of_frames).items() if n.startswith("share") and v > 0} == {
        "share_t2",
        "share_t3",
    }


def test_operations_of_a_clip_are_those_of_its_products_of_matrices():
    """A linear layer of m rows costs 2 m in out forward and as much twice backward; attention 4 n m width, likewise."""
    bucket = Bucket(num_frames=17, height=64, width=64, fps=8)
    task = replace(make_task(Path()), model=DiTConfig(width=64, depth=2, heads=2))
    network = task.build().network
    counted = []

    def count(layer, inputs, output):
        counted.append(2 * output.numel() * layer.in_features)

    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(count)
    caption = CaptionTokens.encode(["a"], task.model.text.max_bytes)
    latent = torch.zeros(1, 4, 5, 8, 8)
    network(latent, torch.zeros(1), caption)
    tokens, words, text = task.num_tokens(bucket), caption.ids.shape[1], task.model.text
    assert tokens == 5 * 4 * 4
    scores = 2 * (4 * tokens * tokens * 64 + 4 * tokens * words * 64) + text.depth * 4 * words * words * text.width
    expected = 3 * (sum(counted) + scores)
    into = 2 * tokens * 16 * 64  # nobody asks for the gradient of the latent
    assert flops_per_clip(task, bucket) == pytest.approx(expected - into, rel=0.01)


def test_pace_is_counted_from_the_plan(runs):
    task = task_of(runs / "data")
    per_clip = {bucket: flops_per_clip(task, bucket) for bucket in (SMALL, STILL)}
    assert (task.num_tokens(SMALL), task.num_tokens(STILL)) == (8, 4)
    assert AutoencoderTask(AutoencoderConfig(), Path(), 0).num_tokens(SMALL) == 32
    ratios = [per_clip[bucket] / task.num_tokens(bucket) for bucket in (SMALL, STILL)]
    for row in read_metrics(runs / "watched-2"):  # of one step each, so of one bucket
        ratio = row["flops_per_second"] / row["tokens_per_second"]
        assert any(ratio == pytest.approx(expected) for expected in ratios)
        assert row["tokens_per_second"] > 0
        assert row["step_seconds"] > 0
        assert row["slowest_own_seconds"] > 0
        assert row["slowest_rank"] in (0, 1)
        assert row["memory_bytes"] > 1e8
        assert "mfu" not in row  # nobody knows what this processor could do


def test_the_slowest_rank_is_the_one_the_others_wait_for():
    ranks = [RankPace(1.0, 0.2, 5), RankPace(1.1, 0.9, 4), RankPace(1.0, 0.3, 9)]
    assert slowest(ranks) == {"step_seconds": 1.1, "slowest_rank": 1, "slowest_own_seconds": 0.9, "memory_bytes": 9}


def test_peaks_of_known_devices():
    assert peak_flops_per_second("NVIDIA H100 80GB HBM3") == peak_flops_per_second("NVIDIA H200") == 989e12
    assert peak_flops_per_second("NVIDIA H100 PCIe") == 756e12
    assert peak_flops_per_second("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops_per_second("NVIDIA GeForce GTX 1080") is None


@pytest.mark.parametrize("run", ["alone", *(f"watched-{stage}" for stage in STAGES)])
def test_distance_of_the_average_is_that_in_the_checkpoint(runs, run):
    master, average = (load_weights(open_checkpoint(runs / run), which) for which in ("master", "ema"))
    difference = sum((average[name] - master[name]).double().square().sum().item() for name in master) ** 0.5
    size = sum(master[name].double().square().sum().item() for name in master) ** 0.5
    assert read_metrics(runs / run)[-1]["ema_distance"] == pytest.approx(difference / size, rel=1e-4)


def sampling_module(task, run_dir: Path, which: Weights):
    """A checkpoint's network, which answers in the precision it was trained in."""
    module = task.build().eval()
    module.load_state_dict(load_weights(open_checkpoint(run_dir), which))

    def answer(query: FlowQuery):
        with torch.autocast("cpu", enabled=False):
            return module(query)

    return answer


def test_clips_are_sampled_with_the_chosen_average(runs):
    """Those after the last step, made again by a plain module from the checkpoint."""
    task = task_of(runs / "data")
    average, other = (sampling_module(task, runs / "alone", which) for which in ("power-0.10", "ema"))
    previewer = task.previewer(torch.device("cpu"))
    prompts = fixed_prompts(runs / "data")
    assert prompts == ["clip 0", "clip 3", "clip 6", "clip 9"]
    for number, prompt in enumerate(prompts):
        frames = previewer.clip(average, prompt, number)
        assert frames.shape == (5, 32, 32, 3)
        name = f"clip-{prompt[5:]}-{number:02}.mp4"
        for run in ("alone", "watched-0"):
            for step in (4, 8):
                assert (runs / run / "samples" / f"step_{step:07}" / name).is_file()
        written = (runs / "alone" / "samples" / "step_0000008" / name).read_bytes()
        assert abs(decode_clip(written).astype(int) - decode_clip(encode_clip(frames, 8))).max() <= 1
        assert (frames != previewer.clip(other, prompt, number)).any()


@pytest.mark.parametrize("run", ["together", *(f"watched-{stage}" for stage in STAGES)])
def test_clips_on_two_workers_are_those_of_one(runs, run):
    of_step = [runs / name / "samples" / "step_0000004" for name in ("alone", run)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in of_step]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (decode_clip((folder / name).read_bytes()).astype(int) for folder in of_step)
        assert abs(one - two).max() <= 8  # of 255: the weights were summed in another order


def test_tensorboard_has_the_curves_and_the_clips(runs):
    reader = EventAccumulator(str(runs / "alone" / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    tags = reader.Reload().Tags()
    assert {"total", "tokens_per_second", f"validation_ema/{SMALL.name}/t0"} <= set(tags["scalars"])
    values = [event.value for event in reader.Scalars(f"validation_ema/{SMALL.name}/all")]
    lines = [line for line in read_validation(runs / "alone") if (line.weights, line.bucket) == ("ema", SMALL.name)]
    assert values == pytest.approx([line.loss for line in lines if line.time_bin is None])
    expected = [f"samples/{number:02} {prompt}" for number, prompt in enumerate(fixed_prompts(runs / "data"))]
    assert sorted(tags["images"]) == expected
    shown = reader.Images("samples/01 clip 3")
    assert [event.step for event in shown] == [4, 8]
    with Image.open(io.BytesIO(shown[0].encoded_image_string)) as picture:
        assert (picture.format, picture.size) == ("GIF", (32, 32))


def test_a_gif_has_all_frames_and_is_made_smaller():
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 64, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_gif(frames, fps=10, max_side=32))) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("GIF", 5, (32, 16))
        assert (picture.info["duration"], picture.info["loop"]) == (100, 0)


def test_wandb_without_its_package_is_an_error_before_the_first_step(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = CONFIG.model_copy(update={"wandb_project": "clips"})
    with pytest.raises(WandbError, match=r"wandb_project is 'clips', but the package wandb is not installed: run pip"):
        train_here(partial(train_watched, data=runs / "data", run_dir=tmp_path, stage=2, config=config), 1)
    assert read_events(tmp_path) == []


@pytest.mark.wandb
def test_wandb_offline_gets_every_step_of_one_run(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = WATCHED.model_copy(update={"wandb_project": "clips", "steps": 4, "schedule": "constant"})
    train_here(partial(train_watched, data=runs / "data", run_dir=tmp_path, stage=2, config=config), 1)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert (tmp_path / "wandb_id").read_text() in log.name
    rows = list(wandb_history(log))
    shown = [row["total"] for row in rows if "total" in row]
    assert shown == pytest.approx([row["total"] for row in read_metrics(tmp_path)])
    assert [row["step"] for row in rows if "total" in row] == [1, 2, 3, 4]
    assert {row["step"] for row in rows if f"validation_raw/{SMALL.name}/all" in row} == {0, 3, 4}
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/videos/**/*.gif"))) == 4


def wandb_history(path: Path):
    """The logged rows of W&B's own file: LevelDB's log format, after seven bytes, with a protobuf in each record."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768  # of the block; a header is never cut in two
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            row = Record.FromString(record)
            if row.WhichOneof("record_type") == "history":
                yield {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.history.item}
            record = b""
