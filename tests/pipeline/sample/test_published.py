"""A published pipeline is sampled as diffusers samples it, and refused by file and field where it cannot be."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.files.checksums import file_sha256
from models.image.pretrained import ImageEncoderError
from models.text.pretrained import PretrainedTextEncoder, TextEncoderError
from pipeline.checkpoint.published import PublishedError
from pipeline.encode.statistics import denormalize
from pipeline.run import randomness
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.images import check_image
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError
from pipeline.sample.published import scheduler_settings
from pipeline.sample.requests import ImageFile, PromptRequest
from pipeline.sample.sampler import ClipSampler
from testing.published import write_image_pipeline, write_pipeline

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


def write_picture(path: Path, seed: int = 0) -> tuple[Image.Image, ImageFile]:
    """A picture of 64 x 96 pixels, the clip's shape: diffusers would stretch others, where here they are cropped."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((96, 64))
    picture.save(path)
    return picture, ImageFile(path=str(path), sha256=file_sha256(path))


def image_pipeline(folder: Path, version: str, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline on disk, and diffusers' pipeline from image to video of it."""
    import diffusers.pipelines.wan.pipeline_wan_i2v as module
    from diffusers import WanImageToVideoPipeline

    # It calls a package that mends broken Unicode whether it is installed or not.
    monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    if version == "2.1":
        peer: Any = write_image_pipeline(folder, scheduler)
    else:  # TI2V is published as a pipeline from text to video
        write_pipeline(folder, version, scheduler)
        peer = WanImageToVideoPipeline.from_pretrained(folder)
    peer.set_progress_bar_config(disable=True)
    return peer


def sampled_from(sampler: ClipSampler, images: list[ImageFile], latent_shape: tuple[int, ...]) -> Tensor:
    """Pixels in [0, 1], before they are rounded, of the first prompts."""
    prompts = [PromptSeed(prompt, seed) for prompt, seed in zip(PROMPTS[: len(images)], (3, 4), strict=False)]
    with torch.inference_mode():
        bucket = sampler.model.bucket("9x64x96@8")
        requests = [
            PromptRequest(id="0" * 12, prompt="", seed=0, guidance_scale=1.0, bucket=bucket.name, image=image)
            for image in images
        ]
        conditions, beginning = sampler.conditions.read(requests, sampler.shape(requests[0]))
        latents = sample_latents(
            sampler.network.given(conditions),
            sampler.model.flow,
            sampler.config,
            prompts,
            guidance_scale=4.0,
            shape=latent_shape,
            read_captions=sampler.read_captions,
            device=CPU,
            beginning=beginning,
        )
        if beginning is not None:
            assert torch.equal(latents[:, :, :1], beginning.latents[:, :, :1])
        pixels = sampler.autoencoder.decode(denormalize(latents, sampler.model.stats))
    return (pixels.clamp(-1, 1) / 2 + 0.5).transpose(1, 2)


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_clips_from_an_image_are_those_of_diffusers_from_the_same_noise(tmp_path, scheduler, version, monkeypatch):
    """Wan 2.2 TI2V: the first frame is given, each token has its time. Wan 2.1 I2V: mask, latents, image encoder."""
    peer = image_pipeline(tmp_path / "pipeline", version, scheduler, monkeypatch)
    picture, image = write_picture(tmp_path / "start.png")
    _, other = write_picture(tmp_path / "other.png", seed=1)
    side = 16 if version == "2.2" else 8
    shape = (4, 3, 64 // side, 96 // side)
    theirs = peer(
        image=picture,
        prompt=PROMPTS[0],
        negative_prompt="a square",
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=randomness.normal(3, "sample", [0], shape),
        output_type="pt",
    ).frames

    settings, _ = scheduler_settings(tmp_path / "pipeline")
    config = SampleConfig(**settings, steps=6, guidance_scale=4.0, negative_prompt="a square", precision="fp32")
    sampler = ClipSampler(open_model(tmp_path / "pipeline"), config, CPU)
    ours = sampled_from(sampler, [image], shape)
    assert ours.shape == theirs.shape == (1, 9, 3, 64, 96)
    assert theirs.std() > 0.05
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    from_other = sampled_from(sampler, [other], shape)
    assert float((from_other - theirs).norm() / theirs.norm()) > 0.02
    together = sampled_from(sampler, [image, other], shape)
    torch.testing.assert_close(together[:1], ours, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def from_image(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("from_image") / "pipeline"
    write_image_pipeline(folder)
    return folder


def test_the_image_reaches_the_network_by_channels_and_by_its_embedding(from_image, tmp_path, monkeypatch):
    """Each of the two alone changes the clip."""
    _, image = write_picture(tmp_path / "a.png")
    _, other = write_picture(tmp_path / "b.png", seed=1)
    sampler = ClipSampler(open_model(from_image), SampleConfig(steps=2, precision="fp32"), CPU)
    assert sampler.conditions.embed_image is not None
    embed, shape = sampler.conditions.embed_image, (4, 3, 8, 12)
    both = sampled_from(sampler, [image], shape)
    monkeypatch.setattr(sampler.conditions, "embed_image", lambda picture: torch.zeros_like(embed(picture)))
    without_embedding = sampled_from(sampler, [image], shape)
    other_channels = sampled_from(sampler, [other], shape)
    assert not torch.allclose(both, without_embedding, atol=1e-3)
    assert not torch.allclose(other_channels, without_embedding, atol=1e-3)


def check_images(model: SampledModel, prompts: list[Prompt], bucket: str) -> None:
    for prompt in prompts:
        check_image(model, prompt, model.bucket(bucket), "heun")


def test_which_pipelines_take_images(from_image, published, tmp_path):
    plain, given = [Prompt(prompt="a")], [Prompt(prompt="b", image="/start.png")]
    model = open_model(from_image)
    check_images(model, given, BUCKET)
    with pytest.raises(PromptError, match=r"prompt 'a' names no image, but .*pipeline makes clips that start from"):
        check_images(model, given + plain, BUCKET)
    check_images(open_model(published), plain, BUCKET)
    with pytest.raises(PromptError, match=r"prompt 'b' names an image, but .* is a text-to-video pipeline \(model_in"):
        check_images(open_model(published), plain + given, BUCKET)
    write_pipeline(tmp_path / "both", "2.2")
    check_images(open_model(tmp_path / "both"), plain + given, "9x32x64@8")


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


def shapes(model: SampledModel, wanted: str | None, prompts: list[Prompt]) -> list[str]:
    plan = Plan(model, SampleConfig(bucket=wanted), [PlacedPrompt("row 1", prompt) for prompt in prompts], 0)
    return [request.bucket for request in plan]


def test_shapes_are_checked_before_anything_is_sampled(published, tmp_path):
    model = open_model(published)
    some = [Prompt(prompt="a", bucket="9x32x32@8"), Prompt(prompt="b")]
    assert shapes(model, "5x16x32@24", some) == ["9x32x32@8", "5x16x32@24"]
    assert shapes(model, None, some[:1]) == ["9x32x32@8"]
    assert shapes(model, None, [Prompt(prompt="a", num_frames=5, height=32, width=16, fps=12.5)]) == ["5x32x16@12.5"]
    for wanted, message in (
        (None, r"samples clips of any shape: name one in sample\.bucket"),
        ("large", r"sample\.bucket 'large' cannot be sampled: write frames x height x width @ frames per second"),
        ("8x32x32@8", r"bucket '8x32x32@8': .*num_frames is 8.* use 5 or 9"),
        ("9x32x40@8", r"bucket '9x32x40@8': .*width is 40.* use 32 or 48"),
    ):
        with pytest.raises(PromptError, match=message):
            shapes(model, wanted, some)
    write_pipeline(tmp_path / "finer", "2.2")
    with pytest.raises(PromptError, match=r"bucket '9x32x48@8' cannot be sampled: a latent of 2 x 3 does not split"):
        shapes(open_model(tmp_path / "finer"), BUCKET, some[1:])


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


@pytest.mark.parametrize(
    ("file", "fields", "error", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "WanPipeline"},
            PublishedError,
            r"in_channels is 12, 8 more than out_channels, but model_index\.json has _class_name WanPipeline and",
        ),
        ("model_index.json", {"expand_timesteps": True}, PublishedError, r"and expand_timesteps True, which give no"),
        ("image_encoder/config.json", {"model_type": "bert"}, ImageEncoderError, r"model_type: .*'clip_vision_model'"),
        (
            "image_encoder/config.json",
            {"hidden_size": 16},
            PublishedError,
            r"hidden_size is 16, but .* embeddings of 12",
        ),
        ("image_encoder/config.json", {"image_size": 32}, ImageEncoderError, r"crop_size is 16, but .* of 32 pixels"),
        ("image_processor/preprocessor_config.json", {"do_resize": False}, ImageEncoderError, r"do_resize: .*True"),
        ("transformer/config.json", {"pos_embed_seq_len": 514}, PublishedError, r"pos_embed_seq_len"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_pipeline_from_image_to_video_is_refused_by_file_and_field(
    from_image, tmp_path, file, fields, error, message
):
    folder = shutil.copytree(from_image, tmp_path / "pipeline")
    change(folder / file, **fields)
    with pytest.raises(error, match=re.escape(str(folder)) + ".*" + message):
        open_model(folder)


def test_a_pipeline_from_image_to_video_needs_a_transformer_that_takes_one(folder, from_image, tmp_path):
    change(folder / "model_index.json", _class_name="WanImageToVideoPipeline")
    with pytest.raises(PublishedError, match=r"in_channels is 4, those of the latents alone, .* no expand_timesteps"):
        open_model(folder)
    other = tmp_path / "other"
    write_image_pipeline(other, transformer={"in_channels": 9})
    with pytest.raises(PublishedError, match=r"in_channels is 9, but a pipeline from image to video gives 12: latents"):
        open_model(other)
    without = shutil.copytree(from_image, tmp_path / "without")
    shutil.rmtree(without / "image_encoder")
    with pytest.raises(ImageEncoderError, match=r"image_encoder/config\.json is missing; copy the whole repository"):
        open_model(without)


def test_the_fingerprint_covers_the_image_encoder(from_image, tmp_path):
    folder = shutil.copytree(from_image, tmp_path / "pipeline")
    seen = {open_model(folder).fingerprint, open_model(from_image).fingerprint}
    for path in ("image_encoder/config.json", "image_processor/preprocessor_config.json"):
        (folder / path).write_text((folder / path).read_text() + "\n", encoding="utf-8")
        seen.add(open_model(folder).fingerprint)
    assert len(seen) == 3


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
