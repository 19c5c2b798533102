"""What a checkpoint is asked before it is sampled: how much of the prompts its network reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.files.checksums import file_sha256
from data.video.images import read_image
from data.video.resize import resize_and_crop
from models.attention.backends import AttentionBackendError
from models.attention.config import AttentionBackend
from models.flow.spec import FlowSpec
from models.networks.config import DiTConfig, UNetConfig
from models.text.config import TextConfig, WordsConfig
from pipeline.checkpoint.record import CheckpointError
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import to_pixels
from pipeline.encode.statistics import denormalize, normalize
from pipeline.sample.config import SampleConfig
from pipeline.sample.images import ImageError
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import PlacedPrompt, Prompt
from pipeline.sample.requests import ImageFile, PromptRequest
from pipeline.sample.sampler import TOKENS_TOGETHER, ClipSampler
from pipeline.sample.truncation import truncation_warnings
from testing.paths import CASES_DIR
from testing.sampled import NETWORK, Untrained, model_of

BYTES = model_of()


def placed(*prompts: str) -> list[PlacedPrompt]:
    return [PlacedPrompt(f"row {number}", Prompt(prompt=prompt)) for number, prompt in enumerate(prompts, 1)]


def test_prompts_longer_than_what_the_network_reads_are_counted():
    prompts = ["a red circle", "short", "a red square", "a reed", "é" * 5]
    (warning,) = truncation_warnings(BYTES, SampleConfig(), placed(*prompts))
    assert warning == (
        "3 of 5 prompts have more than the 8 bytes that the network reads and are cut there; the longest has 12; the "
        "first is in row 1, 'a red circle'"
    )
    assert truncation_warnings(BYTES, SampleConfig(), placed("12345678", "é" * 4, "")) == []


def test_prompts_are_counted_in_words_where_words_are_read():
    text = TextConfig(width=16, depth=1, heads=2, words=WordsConfig(max_words=4))
    words = model_of(model=NETWORK.model_copy(update={"text": text}).model_dump())
    (warning,) = truncation_warnings(words, SampleConfig(), placed("a b c d e", "a, b, c (d)!", "a b c d f", "a b"))
    assert warning == (
        "2 of 4 prompts have more than the 4 words that the network reads and are cut there; the longest has 5; the "
        "first is in row 1, 'a b c d e'; 2 of them become equal to another one"
    )


def test_prompts_that_become_equal_are_counted():
    (warning,) = truncation_warnings(BYTES, SampleConfig(), placed("a red circle", "a red cinema", "a red cinema"))
    assert warning.endswith("; 1 of them become equal to another one")
    (warning,) = truncation_warnings(BYTES, SampleConfig(), placed("a red ci", "a red circle", "b"))
    assert warning.endswith("; 1 of them become equal to another one")


@pytest.mark.parametrize("value", [None, 5, {"width": "x"}])
@pytest.mark.parametrize("name", ["model", "flow", "latent_stats"])
def test_a_checkpoint_that_does_not_say_what_was_trained_is_refused(name, value):
    with pytest.raises(CheckpointError, match=rf"checkpoint\.json is damaged: .*{name}"):
        model_of(**{name: value})


@pytest.mark.parametrize("buckets", [[], "x", [{"num_frames": 2}]])
def test_a_checkpoint_without_a_shape_is_refused(buckets):
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged: trained\.buckets"):
        model_of(buckets=buckets)


def test_a_long_negative_prompt_is_told():
    config = SampleConfig(negative_prompt="blurry and dark")
    assert truncation_warnings(BYTES, config, placed("a")) == [
        "sample.negative_prompt has more than the 8 bytes that the network reads and is cut there"
    ]


def test_the_long_prompt_of_the_cases_is_told_in_a_short_line():
    prompts = PromptsFile(str(CASES_DIR / "prompts" / "long.txt"))
    (warning,) = truncation_warnings(BYTES, SampleConfig(), prompts)
    assert "1 of 1 prompts have more than the 8 bytes" in warning
    assert "the longest has 5000" in warning
    assert len(warning) < 300


@pytest.mark.parametrize(("max_tokens", "num_warnings"), [(4, 1), (6, 0)])
def test_with_a_text_encoder_tokens_are_counted(text_encoder_dir, max_tokens, num_warnings):
    record = TextEncoderRecord(folder=str(text_encoder_dir), fingerprint="", max_tokens=max_tokens, width=16)
    model = model_of(text_encoder=record.model_dump())
    warnings = truncation_warnings(model, SampleConfig(), placed("a red circle moves left", "a"))
    assert len(warnings) == num_warnings
    assert all("1 of 2 prompts have more than the 4 tokens" in warning for warning in warnings)


def test_clips_are_sampled_at_the_frame_rate_of_their_bucket():
    """The same noise and prompt at two frame rates; a network that does not read them gives the same clip."""
    buckets = [Bucket(num_frames=1, height=16, width=16, fps=fps) for fps in (8, 24)]
    for conditions, is_same in (((), True), (("fps",), False)):
        network = NETWORK.model_copy(update={"clip_conditions": conditions})
        model = model_of(model=network.model_dump(), buckets=[bucket.model_dump() for bucket in buckets])
        sampler = ClipSampler(Untrained(**vars(model)), SampleConfig(steps=1, solver="euler"), torch.device("cpu"))
        requests = [
            PromptRequest(id="0" * 12, prompt="a dot", seed=1, guidance_scale=2.0, bucket=each.name) for each in buckets
        ]
        slow, fast = (sampler.sample([request])[0][0] for request in requests)
        assert np.array_equal(slow, fast) == is_same


GIVEN_FIRST = FlowSpec(first_frame_share=0.5).model_dump()
STATS = LatentStats(mean=[0.3], std=[0.7])
BUCKET = Bucket(num_frames=9, height=16, width=32, fps=8)
UNET = UNetConfig(architecture="unet", width=16, num_blocks=1, heads=2, text=NETWORK.text)


def sampler_of(network: DiTConfig | UNetConfig, **settings: Any) -> ClipSampler:
    buckets, stats = [BUCKET.model_dump()], STATS.model_dump()
    model = model_of(model=network.model_dump(), flow=GIVEN_FIRST, buckets=buckets, latent_stats=stats)
    config = SampleConfig(**{"steps": 2, "solver": "euler", "precision": "fp32", **settings})
    return ClipSampler(Untrained(**vars(model)), config, torch.device("cpu"))


@pytest.fixture
def images(tmp_path) -> list[ImageFile]:
    """Two pictures of another size and aspect ratio than the bucket."""
    files = []
    for number in range(2):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(coarse).resize((50, 40)).save(path)
        files.append(ImageFile(path=str(path), sha256=file_sha256(path)))
    return files


def request_of(image: ImageFile | None, seed: int = 1) -> PromptRequest:
    return PromptRequest(id=str(seed), prompt="a dot", seed=seed, guidance_scale=2.0, bucket=BUCKET.name, image=image)


@pytest.mark.parametrize("known_frames", ["time", "channels"])
@pytest.mark.parametrize("network", [NETWORK, UNET], ids=lambda config: config.architecture)
def test_a_clip_starts_from_its_image(network, known_frames, images):
    """The first frame is what the autoencoder makes of the image; each image is that of its own clip alone."""
    sampler = sampler_of(network.model_copy(update={"known_frames": known_frames}))
    clips, _ = sampler.sample([request_of(image, seed) for seed, image in enumerate(images)])
    for seed, (image, clip) in enumerate(zip(images, clips, strict=True)):
        picture = resize_and_crop(read_image(Path(image.path))[None], 16, 32)
        latent = normalize(sampler.autoencoder.encode(to_pixels(picture)[None]).mean, STATS)
        (expected,) = decode_clips(sampler.autoencoder, denormalize(latent, STATS))
        assert clip.shape == (9, 16, 32, 3)
        assert abs(clip[0].astype(int) - expected[0]).max() <= 1
        ((alone,), _) = sampler.sample([request_of(image, seed)])
        assert abs(clip.astype(int) - alone).max() <= 2
    ((without,), _) = sampler.sample([request_of(None, 0)])
    assert abs(clips[0].astype(int) - without).max() > 2


@pytest.mark.parametrize("schedule", ["full_sequence", "autoregressive"])
def test_large_images_are_encoded_in_tiles(schedule, images, tmp_path):
    large = BUCKET.model_copy(update={"height": 64, "width": 96})
    model = model_of(flow=GIVEN_FIRST, buckets=[large.model_dump()])
    whole, tiled = (
        ClipSampler(
            Untrained(**vars(model)),
            SampleConfig(steps=1, solver="euler", schedule=schedule, tile=tile),
            torch.device("cpu"),
        ).sample([request_of(images[0]).model_copy(update={"bucket": large.name})])[0][0]
        for tile in (None, 64)
    )
    assert whole.shape == tiled.shape == (9, 64, 96, 3)
    assert not np.array_equal(whole, tiled)
    assert abs(whole.astype(int) - tiled).mean() < 8


def test_an_image_that_changes_while_the_job_runs_is_named(images):
    sampler = sampler_of(NETWORK)
    Image.new("RGB", (8, 8)).save(images[0].path)
    with pytest.raises(ImageError, match=r"0\.png has changed since the job began; start it again"):
        sampler.sample([request_of(images[0])])
    Path(images[1].path).unlink()
    with pytest.raises(ImageError, match=r"1\.png cannot be read any more: .*No such file"):
        sampler.sample([request_of(images[1])])


def many(number: int) -> list[PromptRequest]:
    return [
        PromptRequest(id=f"{seed:012}", prompt=f"dot {seed}", seed=seed, guidance_scale=2.0, bucket=BUCKET.name)
        for seed in range(number)
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_clip_is_the_same_bit_for_bit_alone_and_among_any_others(precision, solver):
    sampler, requests = sampler_of(NETWORK, precision=precision, solver=solver), many(11)
    together, _ = sampler.sample(requests)
    for order in ([10, 3, 7], [5], list(range(10, -1, -1))):
        clips, _ = sampler.sample([requests[number] for number in order])
        for number, clip in zip(order, clips, strict=True):
            assert np.array_equal(clip, together[number]), (order, number)


def test_clips_that_depend_on_their_place_are_computed_one_by_one(monkeypatch):
    """As on a processor whose kernels round the rows of a matrix differently, depending on where they are."""
    sampler, requests = sampler_of(NETWORK), many(5)
    assert sampler.rows_of(request_of(None)) > 1
    sampler = sampler_of(NETWORK)
    network = sampler.network.forward

    def by_place(x, *arguments, **options):
        return network(x, *arguments, **options) + 1e-6 * torch.arange(len(x)).reshape(-1, 1, 1, 1, 1)

    monkeypatch.setattr(sampler.network, "forward", by_place)
    assert sampler.rows_of(request_of(None)) == 1
    together, _ = sampler.sample(requests)
    assert all(np.array_equal(sampler.sample([r])[0][0], clip) for r, clip in zip(requests, together, strict=True))


def test_large_clips_are_computed_one_by_one_and_small_ones_in_groups_of_equal_size(monkeypatch):
    monkeypatch.setitem(TOKENS_TOGETHER, "cpu", 24)  # a clip of the bucket has 6
    sampler = sampler_of(NETWORK)
    assert sampler.rows_of(request_of(None)) == 4
    sizes = []
    network = sampler.network.forward

    def counted(x, *arguments, **options):
        sizes.append(len(x))
        return network(x, *arguments, **options)

    monkeypatch.setattr(sampler.network, "forward", counted)
    assert [len(group) for group in sampler.groups(many(9))] == [4, 4, 1]
    sampler.sample(many(9))
    assert len(set(sizes)) == 1  # the last group is filled up
    monkeypatch.setitem(TOKENS_TOGETHER, "cpu", 5)
    assert sampler_of(NETWORK).rows_of(request_of(None)) == 1


def test_the_wanted_kernel_computes_the_networks_attention():
    """In float32 on a CPU: sdpa takes every call of the network, and flash-attn none."""
    bucket = Bucket(num_frames=1, height=16, width=16)
    model = model_of(buckets=[bucket.model_dump()])
    request = PromptRequest(id="0" * 12, prompt="a dot", seed=1, guidance_scale=2.0, bucket=bucket.name)

    def sampled(kernel: AttentionBackend) -> np.ndarray:
        config = SampleConfig(steps=1, solver="euler", precision="fp32", attention=kernel)
        return ClipSampler(Untrained(**vars(model)), config, torch.device("cpu")).sample([request])[0][0]

    assert np.array_equal(sampled("sdpa"), sampled("auto"))
    with pytest.raises(AttentionBackendError, match="flash-attn-2 does not take a full call"):
        sampled("flash-attn-2")
