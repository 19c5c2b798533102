"""The command `likelihood`: a network whose velocity is zero holds latents as noise, and every figure is known."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.dataset.index import read_index
from data.dataset.latents import read_latents
from data.dataset.manifest import MANIFEST_NAME, BucketRecord, LatentStats, Manifest
from data.dataset.reader import PayloadReader
from pipeline.distributed.torchrun import train_here
from pipeline.encode.statistics import normalize
from pipeline.train.loop import train
from testing.commands import launch_here
from testing.records import SMALL
from testing.tiny import CONFIG, make_task

NUM_CLIPS, DIMENSIONS = 10, 4 * 2 * 4 * 4
FEW = ("--split", "train", "--steps", "2", "--bound-steps", "20", "--max-clips", "4")


@pytest.fixture(scope="module")
def latents_dir(tiny_latents, tmp_path_factory) -> Path:
    """Latents with a manifest."""
    folder = tmp_path_factory.mktemp("likelihood") / "latents"
    shutil.copytree(tiny_latents, folder)
    manifest = Manifest(
        kind="latents",
        fingerprint="made up",
        buckets=[BucketRecord(bucket=SMALL, num_samples=NUM_CLIPS, num_train=NUM_CLIPS)],
        num_samples=NUM_CLIPS,
        shards=[],
        latent_stats=make_task(folder).latent_stats,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def still(latents_dir, tmp_path_factory) -> Path:
    """A training so slow that the velocity is still what it is at first: zero."""
    folder = tmp_path_factory.mktemp("still")
    slow = CONFIG.model_copy(update={"learning_rate": 1e-20, "warmup_steps": 0, "steps": 4})
    train_here(partial(train, make_task(latents_dir), slow, folder), 1)
    return folder


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "likelihood.jsonl").read_text(encoding="utf-8").splitlines()]


def latents_of(folder: Path, stats: LatentStats) -> dict[str, torch.Tensor]:
    rows = list(read_index(folder))
    reader = PayloadReader(folder)
    latents = normalize(read_latents([reader.read(row) for row in rows]).float(), stats)
    reader.close()
    return dict(zip((row.key for row in rows), latents, strict=True))


def test_a_network_that_moves_nothing_holds_latents_as_noise(still, latents_dir, tmp_path):
    done = launch_here("likelihood", str(still), str(latents_dir), "--output", str(tmp_path), *FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    latents = latents_of(latents_dir, make_task(latents_dir).latent_stats)
    noises, rows = load_file(tmp_path / "noise.safetensors"), rows_of(tmp_path)
    assert len(rows) == 4
    assert noises.keys() == {row["key"] for row in rows}
    for row in rows:
        x = latents[row["key"]]
        torch.testing.assert_close(noises[row["key"]], x, rtol=0, atol=1e-6)
        exact = torch.distributions.Normal(0.0, 1.0).log_prob(x.double()).sum().item()
        assert row["log_likelihood"] == pytest.approx(exact, rel=1e-5)
        assert row["num_dimensions"] == DIMENSIONS
        assert row["bits_per_dimension"] == pytest.approx(-exact / (DIMENSIONS * math.log(2)), rel=1e-5)
        assert row["noise_rms"] == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)
        assert row["round_trip_rms"] < 1e-6
    result = json.loads((tmp_path / "likelihood.json").read_text(encoding="utf-8"))
    bits = torch.tensor([row["bits_per_dimension"] for row in rows])
    assert result["bits_per_dimension"] == pytest.approx(bits.mean().item())
    assert result["standard_error"] == pytest.approx(bits.std().item() / 2)
    assert f"{result['num_clips']} clips: {result['bits_per_dimension']:.3f} ±" in done.stdout


@pytest.mark.slow
def test_noises_lead_back_to_the_clips_and_figures_do_not_depend_on_the_other_clips(often_saved, latents_dir, tmp_path):
    for name, most in (("four", "4"), ("one", "1")):
        options = (*FEW[:-1], most, "--batch", "3", "--probes", "2", "--weights", "master")
        done = launch_here("likelihood", str(often_saved), str(latents_dir), "--output", str(tmp_path / name), *options)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(tmp_path / "four")
    assert max(row["round_trip_rms"] for row in rows) < 1e-4
    assert all(abs(row["log_likelihood"]) < 1e3 and row["bound_bits_per_dimension"] > 0 for row in rows)
    (alone,) = rows_of(tmp_path / "one")
    assert alone["key"] == rows[0]["key"]
    assert alone["log_likelihood"] == pytest.approx(rows[0]["log_likelihood"], rel=1e-4)


def test_what_has_no_likelihood_is_refused_with_the_reason(still, latents_dir, tmp_path):
    output = tmp_path / "out"

    def refused(*options: str, latents: Path = latents_dir) -> str:
        done = launch_here("likelihood", str(still), str(latents), "--output", str(output), *options)
        assert done.returncode == 1, done.stdout
        assert not (output / "likelihood.json").exists()
        return done.stdout + done.stderr

    assert "has no clips of the split validation" in refused()
    assert "power-0.10" in refused("--split", "train", "--weights", "power-0.99")
    other = shutil.copytree(latents_dir, tmp_path / "other")
    save_file({"x": torch.ones(1)}, other / "autoencoder.safetensors")
    assert "encoded by another autoencoder" in refused("--split", "train", latents=other)
