"""Which prompts may name an image, and what networks of Wan 2.1 are given of it."""

from typing import Any

import numpy as np
import pytest
import torch

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder
from models.flow.spec import FlowSpec
from pipeline.encode.codec import to_pixels
from pipeline.encode.statistics import normalize
from pipeline.sample.images import check_image, condition_channels, first_frame_of, given_latents
from pipeline.sample.model import SampledModel
from pipeline.sample.prompts import Prompt, PromptError
from testing.networks import small_dit
from testing.sampled import model_of

CLIP, STILL = Bucket(num_frames=9, height=16, width=32, fps=8), Bucket(num_frames=1, height=16, width=32, fps=8)


def trained(network: dict[str, Any] | None = None, **flow: Any) -> SampledModel:
    buckets = [CLIP.model_dump(), STILL.model_dump()]
    return model_of(
        model=small_dit(**(network or {})).model_dump(), flow=FlowSpec(**flow).model_dump(), buckets=buckets
    )


def check_images(model: SampledModel, prompts: list[Prompt], default_bucket: str) -> None:
    for prompt in prompts:
        check_image(model, prompt, model.bucket(prompt.bucket or default_bucket), "heun")


def asks(image: str | None = "/start.png", bucket: str | None = None) -> list[Prompt]:
    return [Prompt(prompt="a dot", seed=1), Prompt(prompt="a red circle", image=image, bucket=bucket)]


@pytest.mark.parametrize(
    ("network", "flow"),
    [
        ({}, {"first_frame_share": 0.1}),
        ({}, {"times_per": "frame"}),
        ({"known_frames": "channels"}, {"first_frame_share": 0.1}),
    ],
)
def test_a_network_that_was_trained_with_given_frames_takes_images(network, flow):
    check_images(trained(network, **flow), asks(), CLIP.name)


@pytest.mark.parametrize(("network", "flow"), [({}, {}), ({"known_frames": "channels"}, {"times_per": "frame"})])
def test_another_network_is_refused_by_prompt(network, flow):
    model = trained(network, **flow)
    check_images(model, asks(None), CLIP.name)
    with pytest.raises(
        PromptError,
        match=r"prompt 'a red circle' names an image, but checkpoint was trained without .*"
        r"first_frame_share above 0, or leave the column image out",
    ):
        check_images(model, asks(), CLIP.name)


def test_a_single_frame_cannot_start_from_an_image():
    model = trained(first_frame_share=0.1)
    for prompts, default in ((asks(), STILL.name), (asks(bucket=STILL.name), CLIP.name)):
        with pytest.raises(PromptError, match=r"its bucket is 1x16x32@8, a single frame"):
            check_images(model, prompts, default)
    check_images(model, asks(bucket=CLIP.name), STILL.name)


@pytest.fixture
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(latent_channels=2, width=8, deep_width=8, num_blocks=1)).eval()


STATS = LatentStats(mean=[0.5, -0.5], std=[2.0, 0.5])


def test_the_first_latent_frame_of_a_clip_is_that_of_its_first_frame_alone(autoencoder):
    frames = np.random.default_rng(0).integers(0, 256, (2, 9, 16, 32, 3), dtype=np.uint8)
    given = given_latents(autoencoder, STATS, [first_frame_of(clip[0], CLIP) for clip in frames], None)
    assert given.shape == (2, 2, 1, 2, 4)
    with torch.no_grad():
        clips = normalize(autoencoder.encode(torch.stack([to_pixels(clip) for clip in frames])).mean, STATS)
    torch.testing.assert_close(given, clips[:, :, :1])


def test_condition_channels_are_a_mask_and_the_latents_of_the_image_before_frames_of_zeros(autoencoder):
    frames = [first_frame_of(np.full((30, 30, 3), 200, np.uint8), CLIP)]
    channels = condition_channels(autoencoder, STATS, frames, 9, None)
    assert channels.shape == (1, 4 + 2, 3, 2, 4)
    assert channels[:, :4, 0].eq(1).all()
    assert channels[:, :4, 1:].eq(0).all()
    pixels = torch.zeros(1, 3, 9, 16, 32)
    pixels[:, :, 0] = 200 / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(channels[:, 4:], normalize(autoencoder.encode(pixels).mean, STATS))
