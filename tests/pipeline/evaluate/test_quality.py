"""The latent report of clips that come whole or in chunks."""

import pytest
import torch

from pipeline.evaluate.quality import QualityMeter

PIXELS = torch.rand(1, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
LATENTS = torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def measured(made, latents, frames=(9,), latent_frames=(3,)):
    meter = QualityMeter(4)
    meter.begin_clip()
    for part in zip(PIXELS.split(frames, 2), made.split(frames, 2), latents.split(latent_frames, 2), strict=True):
        meter.add(*part)
    return meter.result()


def test_a_perfect_reconstruction():
    quality = measured(PIXELS, LATENTS)
    assert quality.ssim == pytest.approx(1, abs=1e-6)
    assert quality.high_frequency_share == 1
    assert quality.flicker_levels == 0
    assert quality.latent_std == pytest.approx(LATENTS.transpose(0, 1).flatten(1).std(1, correction=0).tolist())
    assert quality.dead_channels == []


def test_chunks_give_what_the_whole_gives():
    made = PIXELS + 0.1 * torch.randn(PIXELS.shape, generator=torch.Generator().manual_seed(2))
    whole, parts = measured(made, LATENTS), measured(made, LATENTS, (5, 4), (2, 1))
    for name, value in whole.model_dump().items():
        assert getattr(parts, name) == pytest.approx(value, rel=1e-6), name
    assert parts.flicker_levels > 10


def test_grey_has_no_detail_and_its_error_moves_as_the_clip_does():
    quality = measured(torch.zeros_like(PIXELS), LATENTS)
    assert quality.high_frequency_share == 0
    assert quality.flicker_levels == pytest.approx(127.5 * PIXELS.diff(dim=2).abs().mean().item(), rel=1e-5)


def test_a_channel_that_hardly_changes_is_dead():
    latents = LATENTS.clone()
    latents[:, 2] = 5 + 0.05 * latents[:, 2]
    quality = measured(PIXELS, latents)
    assert quality.dead_channels == [2]
    assert quality.latent_std[2] == pytest.approx(0.05, rel=0.5)


def test_it_is_measured_in_float32():
    made = PIXELS + 0.01
    expected = measured(made, LATENTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert measured(made, LATENTS) == expected


def test_two_clips_do_not_flicker_between_them():
    meter = QualityMeter(4)
    for error in (0.0, 0.5):
        meter.begin_clip()
        meter.add(0 * PIXELS, 0 * PIXELS + error, LATENTS)
    assert meter.result().flicker_levels == 0
    assert meter.result().high_frequency_share is None  # a clip of one grey has none
