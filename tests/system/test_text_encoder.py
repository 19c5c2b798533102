"""A run whose captions go through a frozen text encoder."""

import shutil
from pathlib import Path

import pytest
import torch

from data.dataset.index import read_index
from data.dataset.manifest import read_manifest
from data.dataset.reader import PayloadReader
from models.text.pretrained import PretrainedTextEncoder, text_encoder_fingerprint
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.encode.captions import read_embeddings
from pipeline.run.stage_record import read_stage_record
from pipeline.sample.outputs import read_samples
from testing.commands import TINY, launch_here
from testing.text_encoders import WIDTH, write_text_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory, text_encoder_dir):
    """A finished run of every stage, with previews while training; its autoencoder, which has no text, without Ray."""
    base = tmp_path_factory.mktemp("text-run")
    config = base / "tiny.yaml"
    config.write_text(TINY.format(runs=base / "runs"), encoding="utf-8")
    arguments = [
        *("run", str(config), "--set", f"encode.text.folder={text_encoder_dir}", "--set", "encode.text.max_tokens=5"),
        *("--set", "dit.train.sample_every_steps=6"),
        *("--set", "sample.compare_unguided=false", "--set", "cluster.workers.num_workers=1"),
    ]
    for command in (("shard",), ("train", "autoencoder", "--local"), ("run",)):
        done = launch_here(*command, *arguments[1:])
        assert done.returncode == 0, done.stderr
    return arguments, base / "runs" / "tiny", done.stdout


@pytest.mark.slow
def test_every_clip_has_its_embeddings_and_the_network_is_made_for_them(run, text_encoder_dir):
    _, run_dir, out = run
    encoder = PretrainedTextEncoder(text_encoder_dir, 5, CPU)
    rows, reader = read_index(run_dir / "latents"), PayloadReader(run_dir / "latents")
    for row in rows:
        stored = read_embeddings([reader.read(row)])
        expected = encoder([row.caption])
        torch.testing.assert_close(stored.values, expected.values, rtol=2e-3, atol=2e-3)  # batches of other sizes
        assert torch.equal(stored.mask, expected.mask)
    record = read_manifest(run_dir / "latents").text_encoder
    assert record is not None
    assert (record.max_tokens, record.width) == (5, WIDTH)
    assert record.fingerprint == text_encoder_fingerprint(text_encoder_dir)
    assert f"{len(rows)} of {len(rows)} captions have more than 5 tokens" in out  # five words and the end
    weights = load_weights(open_checkpoint(run_dir / "dit"), "ema")
    assert weights["network.text.project.weight"].shape == (16, WIDTH)
    assert len(list((run_dir / "dit" / "samples" / "step_0000006").glob("*.mp4"))) == 4
    assert all((run_dir / "samples" / clip.file).is_file() for clip in read_samples(run_dir / "samples"))


def build_of(folder: Path) -> str:
    record = read_stage_record(folder)
    assert record is not None
    return record.build


@pytest.mark.slow
def test_a_second_start_does_nothing_and_another_encoder_remakes_what_it_read(run, text_encoder_dir, tmp_path):
    arguments, run_dir, _ = run
    again = launch_here(*arguments)
    assert again.stdout.count("nothing to do") == 7, again.stdout
    moved = shutil.copytree(text_encoder_dir, tmp_path / "moved")  # the same files elsewhere are the same encoder
    elsewhere = launch_here("encode", *arguments[1:], "--set", f"encode.text.folder={moved}")
    assert "encode: nothing to do" in elsewhere.stdout
    copied = tmp_path / "runs" / run_dir.name  # the other tests need the run as it is
    for name in ("videos", "clips", "autoencoder", "latents"):
        shutil.copytree(run_dir / name, copied / name)
    builds = {name: build_of(copied / name) for name in ("clips", "autoencoder", "latents")}
    other = write_text_encoder(tmp_path / "other", seed=1)
    settings = ("--set", f"runs_dir={copied.parent}", "--set", f"encode.text.folder={other}")
    done = launch_here("encode", *arguments[1:], *settings)
    assert done.returncode == 0, done.stderr
    assert "config.text changed" in done.stdout
    now = {name: build_of(copied / name) for name in builds}
    assert [name for name in builds if now[name] != builds[name]] == ["latents"]


@pytest.mark.slow
def test_sampling_needs_the_same_encoder_and_says_where_it_was(run, text_encoder_dir, tmp_path):
    _, run_dir, _ = run
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle moves left\n")
    sampled = ("sample", str(run_dir / "dit"), "--prompts", str(prompts), "--output", str(out), "--set")
    other = write_text_encoder(tmp_path / "other", seed=1)
    done = launch_here(*sampled, f"sample.text_encoder={other}")
    assert done.returncode != 0
    assert f"{other} is another text encoder" in done.stderr
    assert str(text_encoder_dir) in done.stderr
    done = launch_here(*sampled, f"sample.text_encoder={tmp_path / 'gone'}")
    assert done.returncode != 0
    assert "sample.text_encoder" in done.stderr
    moved = shutil.copytree(text_encoder_dir, tmp_path / "moved")
    done = launch_here(*sampled, f"sample.text_encoder={moved}")
    assert done.returncode == 0, done.stderr
    (clip,) = read_samples(out)
    assert (out / clip.file).is_file()


@pytest.mark.slow
def test_a_missing_encoder_ends_a_run_before_it_begins(run, tmp_path):
    arguments, _, _ = run
    name = ("--set", "name=another", "--set", f"encode.text.folder={tmp_path / 'nowhere'}")
    done = launch_here(*arguments, *name)
    assert done.returncode != 0
    assert "holds no config.json" in done.stderr
    assert "draw" not in done.stdout
