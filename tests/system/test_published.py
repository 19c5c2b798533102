"""A published pipeline on the command line: sampled, fine-tuned through a kill, exported, and loaded by diffusers."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from data.dataset.manifest import read_manifest
from models.networks.wan_published import read_transformer
from models.text.embeddings import CaptionEmbeddings
from pipeline.checkpoint.read import newest_complete_step, open_checkpoint
from pipeline.run.stage_record import read_stage_record
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.outputs import is_whole_clip, read_samples
from pipeline.sample.sampler import ClipSampler
from pipeline.train.monitor.metrics import read_metrics
from testing.commands import TINY, launch_here
from testing.paths import ROOT
from testing.published import TEXT_WIDTH, write_image_pipeline, write_pipeline

MORE_STEPS = 9  # after the kill


@pytest.fixture(scope="module")
def pipeline_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "pipeline"
    write_pipeline(folder, scheduler="unipc")
    return folder


@pytest.fixture(scope="module")
def run(cluster, pipeline_dir, tmp_path_factory) -> tuple[list[str], Path]:
    """Latents of the published autoencoder, and the arguments of every command of the run."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(runs=folder / "runs"), encoding="utf-8")
    model = read_transformer(json.loads((pipeline_dir / "transformer" / "config.json").read_text())).config
    given = {
        "autoencoder.published": pipeline_dir,
        "encode.text": json.dumps({"folder": str(pipeline_dir / "text_encoder"), "max_tokens": 12}),
        "dit.model": json.dumps(model.model_dump()),
        "dit.train.start_from": pipeline_dir,
        "dit.train.learning_rate": 1e-3,
        "dit.train.schedule": "constant",  # so that the number of steps changes nothing in those before
        "dit.train.precision": "fp32",
    }
    arguments = [str(config), *(part for name, value in given.items() for part in ("--set", f"{name}={value}"))]
    for stage in ("shard", "encode"):
        done = launch_here(stage, *arguments, "--set", "cluster.workers.num_workers=1")
        assert done.returncode == 0, done.stderr
    return arguments, folder / "runs" / "tiny"


@pytest.mark.slow
def test_a_prompts_file_is_sampled_straight_from_the_folder(cluster, pipeline_dir, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "clips"
    prompts.write_text("a red circle moves left\na blue star\n", encoding="utf-8")
    given = ("--set", "sample.bucket=9x32x48@8", "--set", "sample.steps=2", "--set", "cluster.workers.num_workers=1")
    command = ("sample", str(pipeline_dir), "--prompts", str(prompts), "--output", str(out), *given)
    plan = launch_here(*command, "--dry-run")
    assert "solver: unipc" in plan.stdout
    assert "grid: diffusers_unipc" in plan.stdout
    assert "shift: 3.0" in plan.stdout
    done = launch_here(*command)
    assert done.returncode == 0, done.stderr
    assert "2 clips in" in done.stdout
    clips = read_samples(out)
    assert all(is_whole_clip(out / clip.file) for clip in clips)
    assert {(clip.request.bucket, clip.num_network_calls) for clip in clips} == {("9x32x48@8", 2)}
    again = launch_here(*command)
    assert {clip.file for clip in read_samples(out)} == {clip.file for clip in clips}, again.stdout
    own = launch_here(*command, "--dry-run", "--set", "sample.solver=heun")
    assert "grid: even" in own.stdout
    assert "shift: 3.0" in own.stdout
    shutil.rmtree(out)
    unset = launch_here(*command[:6])
    assert unset.returncode != 0
    assert "name one in sample.bucket" in unset.stderr
    assert not out.exists()


@pytest.mark.slow
def test_clips_start_from_the_images_of_a_prompts_file(cluster, tmp_path):
    """Started again, the job makes nothing; where an image has changed, its clip alone is another one."""
    folder, prompts, out = tmp_path / "pipeline", tmp_path / "prompts.jsonl", tmp_path / "clips"
    write_image_pipeline(folder)
    for name, colour in (("one", "red"), ("two", "blue")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{name}.png")
    rows = [{"prompt": "a red circle", "image": "one.png"}, {"prompt": "a blue star", "image": "two.png"}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ("--set", "sample.bucket=5x32x48@8", "--set", "sample.steps=2", "--set", "cluster.workers.num_workers=1")
    command = ("sample", str(folder), "--prompts", str(prompts), "--output", str(out), *given)

    described = launch_here("inspect", str(folder)).stdout
    assert "image       8 channels; it can be sampled, but not trained" in described
    assert "to fine-tune it" not in described
    done = launch_here(*command)
    assert done.returncode == 0, done.stderr
    first = {clip.file: (out / clip.file).stat().st_mtime_ns for clip in read_samples(out)}
    assert len(first) == 2
    again = launch_here(*command)
    assert again.returncode == 0, again.stderr
    assert {clip.file: (out / clip.file).stat().st_mtime_ns for clip in read_samples(out)} == first

    Image.new("RGB", (60, 40), "green").save(tmp_path / "one.png")
    changed = launch_here(*command)
    assert "2 clips in" in changed.stdout
    assert "beside 1 of other settings" in changed.stdout
    assert first.keys() < {clip.file for clip in read_samples(out)}

    (tmp_path / "two.png").write_bytes(b"no image")
    refused = launch_here(*command)
    assert refused.returncode != 0
    assert "prompts.jsonl: line 2: image two.png: it cannot be decoded" in refused.stderr
    prompts.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows), encoding="utf-8")
    refused = launch_here(*command)
    assert refused.returncode != 0
    assert "line 1: prompt 'a red circle' names no image, but" in refused.stderr


def test_inspect_says_how_to_fine_tune_it(pipeline_dir):
    done = launch_here("inspect", str(pipeline_dir))
    assert done.returncode == 0, done.stderr
    assert "a published transformer" in done.stdout
    assert "architecture: wan" in done.stdout
    assert f"embeddings of {TEXT_WIDTH} channels" in done.stdout


@pytest.mark.slow
def test_latents_are_normalised_by_the_published_statistics(run, pipeline_dir):
    _, run_dir = run
    stats = read_manifest(run_dir / "latents").latent_stats
    published = json.loads((pipeline_dir / "vae" / "config.json").read_text())
    assert stats is not None
    assert (stats.mean, stats.std) == (published["latents_mean"], published["latents_std"])
    assert not (run_dir / "autoencoder").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, "{rank: 2, alpha: 4}"], ids=["full", "adapters"])
def test_fine_tuning_goes_on_after_a_kill_with_other_workers_and_diffusers_loads_it(run, pipeline_dir, tmp_path, lora):
    """Two processes at stage 3 are killed; one process at stage 1 goes on, as if nothing had happened."""
    arguments, run_dir = run
    killed, calm = (copy_of(run_dir, tmp_path / name) for name in ("killed", "calm"))
    adapters = [] if lora is None else ["--set", f"dit.train.lora={lora}"]
    train = ("train", "dit", *arguments, *adapters, "--set")

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "launch"]
    endless = ("--set", "dit.train.zero_stage=3", "--set", "dit.train.steps=100000")
    command = [*torchrun, *train, f"runs_dir={killed.parent}", *endless]
    process = psutil.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        while newest_complete_step(killed / "dit") == 0:
            assert process.is_running()
            assert process.status() != psutil.STATUS_ZOMBIE
            time.sleep(0.02)
    finally:
        group = [*process.children(recursive=True), process]
        for each in group:
            each.kill()
        psutil.wait_procs(group)
    num_steps = newest_complete_step(killed / "dit") + MORE_STEPS
    train = ("train", "dit", *arguments, *adapters, "--local", "--set", f"dit.train.steps={num_steps}", "--set")
    resumed = launch_here(*train, f"runs_dir={killed.parent}", "--set", "dit.train.zero_stage=1", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    whole = launch_here(*train, f"runs_dir={calm.parent}", "--set", "dit.train.zero_stage=2")
    assert whole.returncode == 0, whole.stderr
    losses = [[row["total"] for row in read_metrics(folder / "dit")] for folder in (killed, calm)]
    assert len(losses[0]) == len(losses[1]) == num_steps
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-4, atol=1e-6)
    assert ("lora" in open_checkpoint(killed / "dit").record.trained) == (lora is not None)

    exported = launch_here("export", str(killed / "dit"), str(tmp_path / "exported"), "--layout", "diffusers")
    assert exported.returncode == 0, exported.stderr
    check_diffusers_gives_the_same(killed / "dit", tmp_path / "exported", pipeline_dir / "transformer")


def copy_of(run_dir: Path, runs_dir: Path) -> Path:
    """The run in another folder of runs."""
    shutil.copytree(run_dir, runs_dir / run_dir.name)
    record = read_stage_record(runs_dir / run_dir.name / "latents")
    assert record is not None
    assert record.complete
    return runs_dir / run_dir.name


def check_diffusers_gives_the_same(trained: Path, exported: Path, base: Path) -> None:
    """The fine-tuned network and what diffusers loads have equal outputs, which are not those of the base."""
    from diffusers import WanTransformer3DModel

    sampler = ClipSampler(open_model(trained), SampleConfig(), torch.device("cpu"))
    peers: list[Any] = [WanTransformer3DModel.from_pretrained(folder) for folder in (exported, base)]
    x, t = torch.randn(2, 4, 3, 4, 6), torch.rand(2)
    caption = CaptionEmbeddings(torch.randn(2, 12, TEXT_WIDTH), torch.ones(2, 12, dtype=torch.bool))
    with torch.inference_mode():
        ours = sampler.network(x, t, caption)
        text = torch.nn.functional.pad(caption.values, (0, 0, 0, 512 - 12))
        tuned, before = (peer(x, 1000 * (1 - t), text, return_dict=False)[0] for peer in peers)
    assert float((ours + tuned).norm() / tuned.norm()) < 1e-5
    assert float((ours + before).norm() / before.norm()) > 1e-3
