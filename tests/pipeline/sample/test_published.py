"""A published pipeline is sampled as diffusers samples it, and refused by file and field where it cannot be."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from models.text.pretrained import PretrainedTextEncoder, TextEncoderError
from pipeline.checkpoint.published import PublishedError
from pipeline.encode.statistics import denormalize
from pipeline.run import randomness
from pipeline.sample.config import SampleConfig
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.model import open_model
from pipeline.sample.published import scheduler_settings
from pipeline.sample.requests import Prompt, PromptError, PromptRequest
from pipeline.sample.sampler import ClipSampler, check_can_sample
from testing.published import write_pipeline

PROMPTS = ("a red circle moves left", "a blue star")
BUCKET = "9x32x48@8"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "pipeline"
    write_pipeline(folder)
    return folder


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(published, tmp_path / "pipeline")


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_clips_are_those_of_diffusers_from_the_same_noise(tmp_path, scheduler, version):
    """Prompts through tokenizer, text encoder, guided transformer, scheduler and decoder: the pixels of both."""
    peer: Any = write_pipeline(tmp_path / "pipeline", version, scheduler)
    peer.set_progress_bar_config(disable=True)
    model = open_model(tmp_path / "pipeline")
    settings, warnings = scheduler_settings(tmp_path / "pipeline")
    assert warnings == []
    config = SampleConfig(**settings, steps=6, guidance_scale=4.0, negative_prompt="a square", precision="fp32")
    side = 16 if version == "2.2" else 8
    shape = (4, 3, 64 // side, 96 // side)
    noise = torch.cat([randomness.normal(seed, "sample", [0], shape) for seed in (3, 4)])
    theirs = peer(
        list(PROMPTS),
        negative_prompt=["a square"] * 2,
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=noise,
        output_type="pt",
    ).frames

    sampler = ClipSampler(model, config, CPU)
    with torch.inference_mode():
        latents = sample_latents(
            sampler.network,
            model.flow,
            config,
            [PromptSeed(prompt, seed) for prompt, seed in zip(PROMPTS, (3, 4), strict=True)],
            guidance_scale=4.0,
            shape=shape,
            read_captions=sampler.read_captions,
            device=CPU,
        )
        pixels = sampler.autoencoder.decode(denormalize(latents, model.stats))
    ours = (pixels.clamp(-1, 1) / 2 + 0.5).transpose(1, 2)
    assert ours.shape == theirs.shape == (2, 9, 3, 64, 96)
    assert theirs.std() > 0.05
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def test_the_text_encoder_gives_what_the_pipeline_reads(published):
    from diffusers import WanPipeline

    peer = WanPipeline.from_pretrained(published)
    theirs, _ = peer.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False, max_sequence_length=512)
    ours = PretrainedTextEncoder(published / "text_encoder", 512, CPU)(PROMPTS)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-3, atol=1e-3)  # ours are rounded to 16 bits


def test_clips_of_any_shape_are_sampled_and_do_not_depend_on_their_batch(published):
    model = open_model(published)
    sampler = ClipSampler(model, SampleConfig(steps=2, precision="fp32"), CPU)
    requests = [
        PromptRequest(id=str(seed), prompt="a red circle", seed=seed, guidance_scale=3.0, bucket=BUCKET)
        for seed in (1, 2)
    ]
    (first, second), _ = sampler.sample(requests)
    assert first.shape == second.shape == (9, 32, 48, 3)
    (alone,), _ = sampler.sample(requests[1:])
    assert abs(alone.astype(int) - second.astype(int)).max() <= 2


def test_shapes_are_checked_before_anything_is_sampled(published, tmp_path):
    model = open_model(published)
    some = [Prompt(prompt="a", bucket="9x32x32@8"), Prompt(prompt="b")]
    assert model.buckets_for("5x16x32@24", some) == ["5x16x32@24", "9x32x32@8"]
    assert model.buckets_for(None, some[:1]) == ["9x32x32@8"]
    for wanted, message in (
        (None, r"samples clips of any shape: name one in sample\.bucket"),
        ("large", r"bucket 'large' cannot be sampled: write frames x height x width @ frames per second"),
        ("8x32x32@8", r"bucket '8x32x32@8': .*num_frames is 8.* use 5 or 9"),
        ("9x32x40@8", r"bucket '9x32x40@8': .*width is 40.* use 32 or 48"),
    ):
        with pytest.raises(PromptError, match=message):
            model.buckets_for(wanted, some)
    write_pipeline(tmp_path / "finer", "2.2")
    with pytest.raises(PromptError, match=r"bucket '9x32x48@8' cannot be sampled: a latent of 2 x 3 does not split"):
        open_model(tmp_path / "finer").buckets_for(BUCKET, [])


def test_the_fingerprint_covers_every_part(published, folder):
    assert open_model(folder).fingerprint == open_model(published).fingerprint
    seen = {open_model(folder).fingerprint}
    for path in ("transformer/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json"):
        (folder / path).write_text((folder / path).read_text() + "\n", encoding="utf-8")
        seen.add(open_model(folder).fingerprint)
    assert len(seen) == 5


def change(path: Path, **fields: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "FluxPipeline"},
            r"_class_name is 'FluxPipeline', but WanPipeline and WanImageToVideoPipeline are",
        ),
        ("model_index.json", {"boundary_ratio": 0.9}, r"two transformers.*boundary_ratio 0\.9"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, r"vae/config\.json: _class_name is 'AutoencoderKL'"),
        ("vae/config.json", {"dropout": 0.5}, r"vae/config\.json: dropout is 0\.5"),
        ("text_encoder/config.json", {"d_model": 16}, r"d_model is 16, but the transformer reads embeddings of 20"),
        ("transformer/config.json", {"text_dim": 24}, r"text_embedder\.linear_1\.weight is F32 \[48, 20\], but"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_pipeline_that_cannot_be_sampled_is_refused_by_file_and_field(folder, file, fields, message):
    change(folder / file, **fields)
    with pytest.raises(PublishedError, match=re.escape(str(folder)) + ".*" + message):
        open_model(folder)


def test_a_part_of_a_pipeline_is_not_sampled(published):
    with pytest.raises(PublishedError, match=r"transformer is one part of a published pipeline; name"):
        open_model(published / "transformer")


def test_a_missing_part_is_named(folder):
    shutil.move(folder / "vae", folder / "elsewhere")
    with pytest.raises(PublishedError, match=r"vae/config\.json is missing"):
        open_model(folder)
    shutil.move(folder / "elsewhere", folder / "vae")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(TextEncoderError, match=r"text_encoder cannot be loaded as a text encoder"):
        ClipSampler(open_model(folder), SampleConfig(), CPU)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(TextEncoderError, match=r"text_encoder is not the folder of a text encoder"):
        open_model(folder)


def test_settings_that_a_published_network_was_not_trained_for_are_refused(published):
    model = open_model(published)
    with pytest.raises(PublishedError, match=r"sample\.weights is 'power-0\.10', but .* has one set of weights"):
        check_can_sample(model, SampleConfig(weights="power-0.10"))
    with pytest.raises(ValueError, match="was trained with one time for all frames"):
        check_can_sample(model, SampleConfig(schedule="pyramid"))


def test_a_scheduler_stands_for_settings_or_is_warned_of(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    assert scheduler_settings(folder) == ({"solver": "euler", "grid": "diffusers_euler", "shift": 3.0}, [])
    change(path, use_dynamic_shifting=True)
    assert scheduler_settings(folder)[0] == {}
    change(path, _class_name="DPMSolverMultistepScheduler")
    (warning,) = scheduler_settings(folder)[1]
    assert "DPMSolverMultistepScheduler with these settings is not known" in warning
    path.unlink()
    (warning,) = scheduler_settings(folder)[1]
    assert "scheduler_config.json is missing" in warning
