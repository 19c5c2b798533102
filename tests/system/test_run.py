"""The whole run on a real Ray cluster, small: every stage, twice, and with things taken away."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from ray._private import worker
from safetensors.torch import load_file

from data.dataset.index import read_index
from data.dataset.manifest import read_manifest
from data.files.publish import TEMPORARY_PREFIX
from data.video.codec import decode_clip
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CheckpointError
from pipeline.run.stage_record import read_stage_record
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.outputs import read_samples
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.train.monitor.metrics import read_metrics
from testing.clusters import SECRET
from testing.commands import TINY, launch, launch_here
from testing.html_page import Page
from testing.paths import ROOT

ONE_WORKER = ("--set", "cluster.workers.num_workers=1")  # starts in half the time, and changes nothing of what is made


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    """A finished run of every stage."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder / "runs"), encoding="utf-8")
    done = launch_here("run", str(config))
    assert done.returncode == 0, done.stderr
    return config, folder / "runs" / "tiny", done.stdout


def test_every_stage_ran_and_left_what_it_should(run):
    _, run_dir, out = run
    folders = ["videos", "clips", "autoencoder", "latents", "dit", "samples", "evaluation"]
    records = [read_stage_record(run_dir / folder) for folder in folders]
    assert all(record is not None and record.complete for record in records)
    assert out.count(": done in") == 7
    clips, latents = read_manifest(run_dir / "clips"), read_manifest(run_dir / "latents")
    assert clips.num_samples == latents.num_samples == 26
    assert [shard.num_samples for shard in clips.shards] == [
        10,
        7,
        9,
    ]  # of at most ten videos, by hashes of their names
    assert [row.key for row in read_index(run_dir / "clips")] == [row.key for row in read_index(run_dir / "latents")]
    assert clips.buckets == latents.buckets
    assert [(b.bucket.name, b.num_samples) for b in latents.buckets] == [("9x32x32@8", 26)]
    assert len(list((run_dir / "videos").rglob("*.mp4"))) == 26
    for kind in ("autoencoder", "dit"):
        assert [row["step"] for row in read_metrics(run_dir / kind)] == list(range(1, 7))
        record = open_checkpoint(run_dir / kind).record
        assert (record.step, record.cursor, record.world_size) == (6, 24, 2)
        finished = read_stage_record(run_dir / kind)
        assert finished is not None
        assert set(record.files) <= {Path(name).name for name in finished.outputs}  # one that is gone is noticed


def test_samples_are_playable_and_listed(run):
    _, run_dir, _ = run
    clips = read_samples(run_dir / "samples")
    assert len(clips) == 24 * 2
    for clip in clips[::10]:
        assert decode_clip((run_dir / "samples" / clip.file).read_bytes()).shape == (9, 32, 32, 3)
    assert {(clip.request.guidance_scale, clip.num_network_calls) for clip in clips} == {(3.0, 2), (1.0, 2)}
    assert sorted(path.name for path in (run_dir / "samples").glob("*.mp4")) == sorted(clip.file for clip in clips)
    page = (run_dir / "samples" / "index.html").read_text(encoding="utf-8")
    assert page.count('"seed": ') == 48


def test_report_holds_every_figure(run):
    _, run_dir, out = run
    figures = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    stages = ["draw", "shard", "train autoencoder", "encode", "train dit", "sample", "evaluate"]
    assert set(figures["wall_seconds"]) == {*stages, "total"}
    assert all(figures["wall_seconds"][stage] > 0 for stage in stages)
    assert figures["peak_rss_bytes"] > 5e8
    assert figures["autoencoder"]["num_clips"] == 2
    assert len(figures["autoencoder"]["quality"]["latent_std"]) == len(figures["latents"]["latent_stats"]["std"])
    for section in (figures["judge"], figures["adherence"], figures["adherence"]["without_guidance"]):
        assert {"colour", "direction", "shape", "all", "num_clips", "num_right"} <= set(section)
    assert figures["adherence"]["num_clips"] == 24
    assert set(figures["compared"]) == {"3", "1"}
    compared = figures["compared"]["3"]
    assert compared["num_samples"] == 24
    assert compared["adherence"]["all"]["value"] == pytest.approx(figures["adherence"]["all"], abs=1e-4)
    assert {"brightness", "contrast", "coloured_area", "motion", "flicker"} <= set(compared["drifts"])
    assert compared["frechet_video"]["low"] < compared["frechet_video"]["corrected"]
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("data:video/mp4;base64,") == 24 + 2 * 2 + 2 * 8  # samples, reconstructions, nearest clips
    links = [link["href"] or "" for link in Page(run_dir / "report.html").all("a")]
    assert links == ["evaluation/gallery.html", "evaluation/dataset/index.html"]
    assert all((run_dir / link).is_file() for link in links)
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )  # self-contained: nothing is fetched
    assert str(run_dir / "report.html") in out


def test_no_file_of_a_run_holds_what_is_secret_in_the_environment(run):
    """Nor do the logs of the cluster."""
    _, run_dir, out = run
    told = ray.get(ray.remote(lambda: os.environ["REELFLOW_TEST_STORE_KEY"]).options(num_cpus=0).remote())
    assert told == os.environ["REELFLOW_TEST_STORE_KEY"] == SECRET
    node: Any = worker._global_node
    logs = Path(node.get_logs_dir_path())
    written = [path for folder in (run_dir, logs) for path in folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in written}
    assert {".safetensors", ".json", ".jsonl", ".yaml", ".html", ".tar", ".parquet", ".mp4", ".log", ".out"} <= kinds
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in out


def test_a_second_run_has_nothing_to_do_and_a_lost_stage_is_made_again(run):
    """What depends on it stays: the same clips are made again."""
    config, run_dir, _ = run
    again = launch("run", str(config))  # a process of its own: what Ray says there is all in its stderr
    assert again.returncode == 0
    assert again.stdout.count("nothing to do") == 7
    assert "Ray" not in again.stderr  # no cluster was started for nothing
    before = {name: (run_dir / name).stat().st_mtime_ns for name in ("clips/manifest.json", "dit/latest")}

    shutil.rmtree(run_dir / "samples")
    third = launch_here("run", str(config), *ONE_WORKER)
    assert third.stdout.count("nothing to do") == 6
    assert "sample: done" in third.stdout
    assert "evaluate: nothing to do" in third.stdout
    assert before == {name: (run_dir / name).stat().st_mtime_ns for name in before}


def test_a_run_that_was_pushed_to_a_store_and_pulled_elsewhere_has_nothing_to_do(run, tmp_path):
    config, run_dir, _ = run
    place = "memory://runs/tiny"
    assert launch_here("push", str(run_dir), place).returncode == 0
    pulled = launch_here("pull", place, str(tmp_path / "pulled" / "tiny"))
    assert pulled.returncode == 0, pulled.stderr
    for folder in ("pulled", "fetched"):  # the second by the run itself
        settings = ("--set", f"runs_dir={tmp_path / folder}", "--set", "store=memory://runs")
        again = launch_here("run", str(config), *settings)
        assert again.returncode == 0, again.stderr
        assert again.stdout.count("nothing to do") == 7
        assert ("fetched" in again.stdout) == (folder == "fetched")
    alone = launch_here("pull", place, str(tmp_path / "model" / "tiny"), "--only", "dit")
    assert alone.returncode == 0, alone.stderr
    assert {path.name for path in (tmp_path / "model" / "tiny").iterdir() if path.is_dir()} == {"dit"}
    assert open_checkpoint(tmp_path / "model" / "tiny" / "dit").record == open_checkpoint(run_dir / "dit").record


@pytest.mark.slow
def test_a_changed_setting_is_said_and_the_old_output_is_kept(run, tmp_path):
    config, run_dir, _ = run
    changed = launch_here("sample", str(config), "--set", "sample.steps=1", *ONE_WORKER)
    assert changed.returncode == 0, changed.stderr
    assert "sampler.steps changed (2 -> 1): made again, the old one is in samples.superseded-1" in changed.stdout
    assert (run_dir / "samples.superseded-1" / "manifest.jsonl").is_file()
    back = launch_here("run", str(config), *ONE_WORKER)
    assert back.returncode == 0, back.stderr


@pytest.mark.slow
def test_other_files_are_added_to_finished_samples_and_leave_what_depends_on_them(run, tmp_path):
    _, run_dir, _ = run
    shutil.copytree(run_dir, tmp_path / "tiny", ignore=shutil.ignore_patterns("*.superseded-*"))
    config = str(tmp_path / "tiny" / "config.yaml")
    samples, option = tmp_path / "tiny" / "samples", ["--set", f"runs_dir={tmp_path}"]
    before = {path.name: path.read_bytes() for path in samples.glob("*.mp4")}
    more = [*option, *ONE_WORKER, "--set", "sample.outputs=[mp4,gif,webdataset]"]
    done = launch_here("sample", config, *more)
    assert done.returncode == 0, done.stderr
    assert "sample: continues" in done.stdout
    assert {path.name: path.read_bytes() for path in samples.glob("*.mp4")} == before
    assert {path.stem for path in samples.glob("*.gif")} == {name.removesuffix(".mp4") for name in before}
    assert read_manifest(samples / "dataset" / "latents").num_samples == len(before)
    assert "evaluate: nothing to do" in launch_here("evaluate", config, *more).stdout
    assert "sample: nothing to do" in launch_here("sample", config, *more).stdout
    next(samples.glob("*.gif")).unlink()
    assert ".gif is missing" in launch_here("sample", config, *more).stdout
    assert len(list(samples.glob("*.gif"))) == len(before)
    fewer = launch_here("sample", config, *option, "--set", "sample.outputs=[mp4]")  # what is there stays
    assert "sample: continues" in fewer.stdout
    assert "made again" not in fewer.stdout
    assert not (tmp_path / "tiny" / "samples.superseded-1").exists()


def test_more_steps_go_on_from_the_checkpoint(run):
    config, run_dir, _ = run
    more = launch_here("train", "dit", str(config), "--set", "dit.train.steps=8", "--resume", "--local")
    assert more.returncode == 0, more.stderr
    assert "resuming from step 6" in more.stdout
    assert [row["step"] for row in read_metrics(run_dir / "dit")] == list(range(1, 9))
    assert open_checkpoint(run_dir / "dit").record.step == 8
    again = launch_here("sample", str(config), *ONE_WORKER)
    assert "dit changed" in again.stdout  # what was sampled before came from fewer steps


def test_a_changed_setting_is_shown_and_refused_unless_allowed_by_name(run, tmp_path):
    config, run_dir, _ = run
    for folder in ("videos", "clips", "autoencoder", "latents", "dit"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    settings = [
        "dit.train.steps=9",
        "dit.train.learning_rate=0.0005",
        "dit.flow.caption_drop=0.2",
        f"runs_dir={tmp_path}",
    ]
    command = ["train", "dit", str(config), "--local", *(part for setting in settings for part in ("--set", setting))]
    refused = launch_here(*command, "--resume")
    assert refused.returncode == 1
    assert "train.learning_rate changed (0.001 -> 0.0005)" in refused.stderr
    assert "flow.caption_drop changed (0.1 -> 0.2)" in refused.stderr
    assert "--allow-change flow.caption_drop --allow-change train.learning_rate" in refused.stderr
    half = launch_here(*command, "--allow-change", "train.learning_rate")
    assert half.returncode == 1
    assert "learning_rate" not in half.stderr
    before = read_metrics(tmp_path / "tiny" / "dit")[-1]["step"]
    allowed = launch_here(*command, "--allow-change", "train.learning_rate", "--allow-change", "flow.caption_drop")
    assert allowed.returncode == 0, allowed.stderr
    assert f"resuming from step {before}" in allowed.stdout
    assert [row["step"] for row in read_metrics(tmp_path / "tiny" / "dit")] == list(range(1, 10))
    assert not (tmp_path / "tiny" / "dit.superseded-1").exists()


@pytest.mark.slow
def test_a_checkpoint_alone_is_enough_to_sample(run, tmp_path):
    _, run_dir, _ = run
    moved = tmp_path / "elsewhere"
    shutil.copytree(open_checkpoint(run_dir / "dit").folder, moved)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moves left\n\na blue square moves up\n", encoding="utf-8")
    output = tmp_path / "clips"
    command = ["sample", str(moved), "--prompts", str(prompts), "--output", str(output), "--set", "sample.steps=2"]
    command += ONE_WORKER
    done = launch_here(*command)
    assert done.returncode == 0, done.stderr
    assert "line 2 is empty and was skipped" in done.stdout
    first = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert sorted(name.rsplit("-", 1)[0] for name in first) == ["a-blue-square-moves-up", "a-red-circle-moves-left"]
    shutil.rmtree(output)
    prompts.write_text("a blue square moves up\na red circle moves left\n", encoding="utf-8")
    assert launch_here(*command).returncode == 0
    assert {path.name: path.read_bytes() for path in output.glob("*.mp4")} == first  # order changes nothing


@pytest.mark.slow
def test_a_checkpoint_is_sampled_as_its_run_samples_it(run, tmp_path):
    """Its settings and seed are those of the run: the same prompts give the same clips, without any option."""
    _, run_dir, _ = run
    output = tmp_path / "clips"
    prompts = run_dir / "samples" / "prompts.jsonl"
    done = launch_here("sample", str(run_dir / "dit"), "--prompts", str(prompts), "--output", str(output), *ONE_WORKER)
    assert done.returncode == 0, done.stderr
    clips = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert all(clip.request.settings == SampleConfig(solver="euler", steps=2) for clip in read_samples(output))
    of_run = {path.name: path.read_bytes() for path in (run_dir / "samples").glob("*.mp4")}
    assert len(clips) == len(prompts.read_text(encoding="utf-8").splitlines())
    assert clips.items() <= of_run.items()


@pytest.mark.slow
def test_clips_that_two_workers_share_are_made_again_with_the_same_bytes(run, tmp_path):
    _, run_dir, _ = run
    prompts, output = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("a red circle moves left\na blue square moves up\n", encoding="utf-8")
    command = ["sample", str(run_dir / "dit"), "--prompts", str(prompts), "--output", str(output)]
    command += ["--set", "sample.sequence_parallel=2"]
    refused = launch_here(*command, *ONE_WORKER)
    assert "no machine has room for 2 of the 1 workers" in refused.stderr
    done = launch_here(*command)
    assert done.returncode == 0, done.stderr
    clips = read_samples(output)
    assert len(clips) == 2
    for clip in clips:
        again = launch_here("remake", str(output / clip.file))
        assert "the clip made again has the bytes of" in again.stdout, again.stderr
        assert decode_clip((output / clip.file).read_bytes()).shape == (9, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({"solver": "euler"}, 3),
        ({"solver": "heun"}, 6),
        ({"solver": "rk4"}, 12),
        ({"solver": "ab2"}, 3),
        ({"solver": "dpmpp_2m"}, 3),
        ({"solver": "unipc"}, 3),
        ({"solver": "ddim"}, 3),
        ({"solver": "ddim", "ddim_eta": 0.5}, 3),
        ({"solver": "dopri5", "tolerance": 0.1}, None),
        ({"solver": "euler", "grid": "karras"}, 3),
        ({"solver": "euler", "grid": "linear_quadratic"}, 3),
        ({"solver": "euler", "guidance_interval": (0.4, 1.0)}, 3),
        ({"sde_sigma": 0.5}, 3),
        ({"solver": "euler", "guidance": "cfg-zero-star"}, 3),
        ({"solver": "euler", "guidance": "apg"}, 3),
        ({"solver": "euler", "guidance": "rescaled"}, 3),
        ({"solver": "euler", "negative_prompt": "a blue square"}, 3),
    ],
)
def test_every_way_to_sample_has_its_price_and_knows_nothing_of_its_batch(run, options, calls):
    """One network call per evaluation, both branches in it; a clip does not depend on what shares its batch."""
    requests = [
        PromptRequest(id=str(seed), prompt="a red circle moves left", seed=seed, guidance_scale=3.0, bucket="9x32x32@8")
        for seed in (1, 2)
    ]
    sampler = ClipSampler(open_model(run[1] / "dit"), SampleConfig(steps=3, **options), torch.device("cpu"))
    (first, second), made = sampler.sample(requests)
    assert calls in (made, None)
    assert first.shape == second.shape == (9, 32, 32, 3)
    assert not (first == second).all()
    (alone,), _ = sampler.sample(requests[1:])
    assert abs(alone.astype(int) - second.astype(int)).max() <= 2  # sums of another shape round differently


@pytest.mark.parametrize(
    "flow",
    [
        {"path": "cosine"},
        {"path": "vp", "prediction": "noise"},
        {"prediction": "data", "loss_weight": "velocity"},
        {"times_per": "frame"},
    ],
    ids=str,
)
def test_other_paths_and_predictions_train_and_sample(run, tmp_path, flow):
    config, run_dir, _ = run
    for folder in ("videos", "clips", "autoencoder", "latents"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    settings = [f"dit.flow.{name}={value}" for name, value in flow.items()]
    given = [part for setting in settings for part in ("--set", setting)]
    done = launch_here("train", "dit", str(config), "--local", "--set", f"runs_dir={tmp_path}", *given)
    assert done.returncode == 0, done.stderr
    model = open_model(tmp_path / "tiny" / "dit")
    assert flow.items() <= model.flow.model_dump().items()
    request = PromptRequest(id="1", prompt="a red circle moves left", seed=1, guidance_scale=3.0, bucket="9x32x32@8")
    per_frame = flow.get("times_per") == "frame"
    frames = 3
    for schedule, steps in {"full_sequence": 4, "pyramid": 4 + frames - 1, "autoregressive": 4 * frames}.items():
        settings = SampleConfig.model_validate({"solver": "euler", "steps": 4, "schedule": schedule})
        if schedule == "full_sequence" or per_frame:
            (clip,), calls = ClipSampler(model, settings, torch.device("cpu")).sample([request])
            assert clip.std() > 0
            assert calls == steps
        else:
            with pytest.raises(CheckpointError, match="trained with one time for all frames"):
                check_can_sample(model, settings)


@pytest.mark.parametrize(
    ("kind", "spec", "solver"),
    [
        ("flow_map", "map: {max_guidance: 3}", "flow_map"),
        pytest.param(
            "distribution_matching", "matching: {max_guidance: 3, calls: 2}", "renoise", marks=pytest.mark.slow
        ),
    ],
)
def test_a_student_is_distilled_from_the_network_of_the_run_and_sampled_by_jumps(run, tmp_path, kind, spec, solver):
    config, run_dir, _ = run
    for folder in ("videos", "clips", "autoencoder", "latents", "dit"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    student = f"distill={{kind: {kind}, {spec}, train: {{steps: 2, global_batch: 4, log_every_steps: 1}}}}"
    given = ["--set", f"runs_dir={tmp_path}", "--set", student, "--set", f"sample.solver={solver}"]
    done = launch_here("train", "distill", str(config), "--local", *given)
    assert done.returncode == 0, done.stderr
    record, teacher = read_stage_record(tmp_path / "tiny" / "distill"), read_stage_record(run_dir / "dit")
    assert record is not None
    assert teacher is not None
    assert record.complete
    assert teacher.is_content(record.inputs["dit"], "weights")
    model = open_model(tmp_path / "tiny" / "distill")
    assert (model.flow.map is not None, model.flow.matching is not None) == (solver == "flow_map", solver == "renoise")
    prompts, output = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("a red circle moves left\n", encoding="utf-8")
    done = launch_here("sample", str(tmp_path / "tiny" / "distill"), "--prompts", str(prompts), "--output", str(output))
    assert done.returncode == 0, done.stderr
    (clip,) = read_samples(output)  # by the settings of the run, which the checkpoint carries
    assert (clip.num_network_calls, clip.request.guidance_scale) == (2, 3.0)


@pytest.mark.slow
def test_a_network_of_tokens_is_trained_and_sampled_by_the_commands(run, tmp_path):
    config, run_dir, _ = run
    for folder in ("videos", "clips", "autoencoder", "latents"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    train = "train: {steps: 2, global_batch: 4, log_every_steps: 1}"
    tokens = f"tokenizer={{model: {{levels: [4, 3], codes: 1, width: 8, depth: 1}}, {train}}}"
    given = [f"runs_dir={tmp_path}", tokens, "dit.flow={tokens: {}}", "sample.solver=jumps"]
    overrides = [part for override in given for part in ("--set", override)]
    for stage in ("tokenizer", "dit"):
        done = launch_here("train", stage, str(config), "--local", *overrides)
        assert done.returncode == 0, done.stderr
    record, made = (read_stage_record(tmp_path / "tiny" / folder) for folder in ("dit", "tokenizer"))
    assert record is not None
    assert made is not None
    assert made.is_content(record.inputs["tokenizer"], "weights")
    prompts, output = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("a red circle moves left\n", encoding="utf-8")
    command = ["sample", str(tmp_path / "tiny" / "dit"), "--prompts", str(prompts), "--output", str(output)]
    done = launch_here(*command, "--set", "sample.temperature=0.9")
    assert done.returncode == 0, done.stderr
    (clip,) = read_samples(output)  # by the settings of the run, which the checkpoint carries
    assert clip.request.settings is not None
    assert clip.request.settings.solver == "jumps"
    assert not clip.request.is_of_noise_alone
    done = launch_here(*command, "--set", "sample.solver=heun")
    assert done.returncode != 0
    assert "predicts tokens: use the solver jumps" in done.stderr


@pytest.mark.slow
def test_every_way_to_condition_is_trained_and_sampled_by_the_commands(run, tmp_path):
    config, run_dir, _ = run
    for folder in ("videos", "clips", "autoencoder", "latents"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    flow = "dit.flow.given={prefix: 0.3, ends: 0.3, subset: 0.4}"
    done = launch_here("train", "dit", str(config), "--local", "--set", f"runs_dir={tmp_path}", "--set", flow)
    assert done.returncode == 0, done.stderr
    video, picture = sorted((run_dir / "videos").rglob("*.mp4"))[0], tmp_path / "half.png"
    Image.fromarray(np.repeat([[[255] * 3] * 32, [[0] * 3] * 32], 16, axis=0).astype(np.uint8)).save(picture)
    rows = [
        {},
        {"image": "half.png"},
        {"clip": str(video)},
        {"image": "half.png", "last_image": "half.png"},
        {"clip": str(video), "last_clip": str(video), "context": 5, "total_frames": 17},
        {"source": str(video), "strength": 0.5},
        {"source": str(video), "mask": "half.png"},
        {"total_frames": 33, "later_prompts": [[2, "a blue square moves up"]]},
    ]
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "clips"
    named = [{"prompt": f"number {number}", "seed": 1} | row for number, row in enumerate(rows)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
    target, options = str(tmp_path / "tiny" / "dit"), ["--set", "sample.steps=2"]
    command = ["sample", target, "--prompts", str(prompts), "--output", str(output), *options]
    done = launch_here(*command)
    assert done.returncode == 0, done.stderr
    assert "1 rows have a mask, the first in " in done.stdout
    clips = read_samples(output)
    assert [len(decode_clip((output / clip.file).read_bytes())) for clip in clips] == [9, 9, 9, 9, 17, 9, 9, 33]
    contents = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert len(contents) == len(rows)
    for name, content in contents.items():
        again = tmp_path / "again" / name
        done = launch_here("remake", str(output / name), "--output", str(again))
        assert done.returncode == 0, done.stderr
        assert again.read_bytes() == content
    assert launch_here(*command).returncode == 0  # nothing is left to do
    prompts.write_text("".join(json.dumps(row) + "\n" for row in named[:0:-1]), encoding="utf-8")
    other = tmp_path / "other"
    done = launch_here("sample", target, "--prompts", str(prompts), "--output", str(other), *options, *ONE_WORKER)
    assert done.returncode == 0, done.stderr
    again = {path.name: path.read_bytes() for path in other.glob("*.mp4")}
    assert len(again) == len(rows) - 1
    assert again.items() <= contents.items()
    prompts.write_text('{"prompt": "x", "clip": "half.png", "context": 5}\n', encoding="utf-8")
    done = launch_here("sample", target, "--prompts", str(prompts), "--output", str(other), *options)
    assert done.returncode != 0
    assert "line 1: prompt 'x' names a clip of 1 frames at 8 fps, but 5 are needed" in done.stdout + done.stderr


def test_captions_that_are_cut_are_said(run, tmp_path):
    config, run_dir, out = run
    assert "warning" not in out
    for folder in ("videos", "clips", "autoencoder", "latents"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    given = ["--local", "--set", f"runs_dir={tmp_path}", "--set", "dit.model.text.max_bytes=10"]
    done = launch_here("train", "dit", str(config), *given)
    assert done.returncode == 0, done.stderr
    assert "26 of 26 captions are longer than 10 bytes" in done.stdout
    assert "raise dit.model.text.max_bytes" in done.stdout


@pytest.mark.slow
def test_training_without_ray(run, tmp_path):
    config, run_dir, _ = run
    shutil.copytree(run_dir / "clips", tmp_path / "tiny" / "clips")
    shutil.copytree(run_dir / "videos", tmp_path / "tiny" / "videos")
    done = launch("train", "autoencoder", str(config), "--local", "--set", f"runs_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    record = open_checkpoint(tmp_path / "tiny" / "autoencoder").record
    assert (record.step, record.world_size) == (6, 1)
    alone = [row["total"] for row in read_metrics(tmp_path / "tiny" / "autoencoder")]
    together = [row["total"] for row in read_metrics(run_dir / "autoencoder")]
    assert alone == pytest.approx(together, rel=0.02)  # bf16 sums in another order


@pytest.mark.slow
def test_training_under_torchrun(run, tmp_path):
    """One start of two processes: the first one looks after the folder, and both train as Ray's two do."""
    config, run_dir, _ = run
    for folder in ("clips", "videos"):
        shutil.copytree(run_dir / folder, tmp_path / "tiny" / folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "launch"]
    command += ["train", "autoencoder", str(config), "--set", f"runs_dir={tmp_path}"]

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        given = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        return subprocess.run([*command, *arguments], check=False, **given)

    def logged(folder: Path) -> list[tuple[float, ...]]:
        return [tuple(row[name] for name in ("step", "total", "gradient_norm")) for row in read_metrics(folder)]

    done = start()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train autoencoder: done") == 1
    assert open_checkpoint(tmp_path / "tiny" / "autoencoder").record.world_size == 2
    assert logged(tmp_path / "tiny" / "autoencoder") == logged(run_dir / "autoencoder")
    again = start()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("nothing to do") == 1
    refused = start("--set", "autoencoder.train.learning_rate=0.5", "--resume")
    assert refused.returncode != 0
    assert refused.stderr.count("train.learning_rate changed") == 1
    assert not (tmp_path / "tiny" / "autoencoder.superseded-1").exists()


def test_inspect_tells_what_each_folder_holds(run):
    _, run_dir, _ = run
    assert "26 samples in 3 shards" in launch_here("inspect", str(run_dir / "clips")).stdout
    assert "latents, 26 samples in 3 shards" in launch_here("inspect", str(run_dir / "latents")).stdout
    assert "2 workers, ZeRO stage 2" in launch_here("inspect", str(run_dir / "autoencoder")).stdout
    assert "sampled clips" in launch_here("inspect", str(run_dir / "samples")).stdout
    assert "complete" in launch_here("inspect", str(run_dir)).stdout


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written_and_the_next_start_goes_on(run, tmp_path):
    config, finished, _ = run
    run_dir = tmp_path / "tiny"
    for folder in ("clips", "videos"):
        shutil.copytree(finished / folder, run_dir / folder)
    arguments = ("train", "autoencoder", str(config), "--set", f"runs_dir={tmp_path}", "--set")
    command = [sys.executable, "-m", "launch", *arguments, "autoencoder.train.steps=4000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while not (run_dir / "autoencoder" / "latest").is_file():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the same command continues from here" in out
    assert "Traceback" not in out
    stopped_at = open_checkpoint(run_dir / "autoencoder").record.step
    assert stopped_at >= 3
    done = launch_here(*arguments, f"autoencoder.train.steps={stopped_at + 3}", "--local")
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {stopped_at}" in done.stdout
    assert [row["step"] for row in read_metrics(run_dir / "autoencoder")] == list(range(1, stopped_at + 4))
    assert not list(run_dir.rglob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.slow
def test_a_copied_run_is_tuned_with_adapters_on_the_first_ones_network(run, tmp_path):
    config, run_dir, _ = run
    tuned = run_dir.with_name("tuned")
    shutil.copytree(run_dir, tuned)
    wanted = ["--set", "name=tuned", "--set", f"dit.train.start_from={run_dir / 'dit'}"]
    adapters = [*wanted, "--set", "dit.train.lora={rank: 2, alpha: 4}"]
    refused = launch_here("train", "dit", str(config), *adapters, "--set", "dit.model.heads=4")
    assert refused.returncode != 0
    assert "dit.model.heads is 4 but 2 there" in refused.stderr
    done = launch_here("train", "dit", str(config), *adapters, "--local")
    assert done.returncode == 0, done.stderr
    assert "another autoencoder" not in done.stdout
    checkpoint = open_checkpoint(tuned / "dit")
    assert (checkpoint.record.step, checkpoint.record.trained["lora"]["rank"]) == (6, 2)
    assert all("lora_" in name for name in checkpoint.record.parameters)
    assert checkpoint.record.trained["base"] == open_checkpoint(run_dir / "dit").fingerprint
    again = launch_here("train", "dit", str(config), *adapters)
    assert "nothing to do" in again.stdout
    own = launch_here("train", "dit", str(config), *adapters, "--set", f"dit.train.start_from={tuned / 'dit'}")
    assert "a folder that this training would archive: give the run another name" in own.stderr

    merged = tuned / "merged.safetensors"
    assert launch_here("export", str(tuned / "dit"), str(merged)).returncode == 0
    whole = open_checkpoint(run_dir / "dit").record.parameters
    assert {f"network.{name}": list(weight.shape) for name, weight in load_file(merged).items()} == whole
    sampler = ClipSampler(open_model(tuned / "dit"), SampleConfig(steps=1), torch.device("cpu"))
    assert all(torch.equal(sampler.network.state_dict()[name], weight) for name, weight in load_file(merged).items())

    row = {"prompt": "a red circle moves left", "seed": 1}
    rows, one = tmp_path / "rows.jsonl", tmp_path / "one.jsonl"
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'checkpoint': str(tuned / 'dit')})}\n", encoding="utf-8")
    one.write_text(json.dumps(row) + "\n", encoding="utf-8")
    made = {}
    for prompts, model, folder in ((rows, run_dir, "both"), (one, tuned, "alone")):
        command = ["sample", str(model / "dit"), "--prompts", str(prompts), "--output", str(tmp_path / folder)]
        sampled = launch_here(*command, "--set", "sample.steps=2", *ONE_WORKER)
        assert sampled.returncode == 0, sampled.stderr
        made[folder] = {path.name: path.read_bytes() for path in (tmp_path / folder).glob("*.mp4")}
    assert len(made["both"]) == 2
    assert made["alone"].items() < made["both"].items()
