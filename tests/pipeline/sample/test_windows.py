"""Clips longer than those of training, made in windows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data.dataset.compression import COMPRESSION
from models.flow.beginning import Beginning
from models.flow.field import Field
from models.flow.path import StraightPath
from models.flow.solver import rk4
from pipeline.sample.windows import Window, blended, windows_of
from testing.gaussians import VideoData, ar1, steps


def test_windows_cover_a_clip_and_share_at_least_what_is_asked_for():
    for num_latent in range(5, 70):
        for num_shared in (1, 2, 4):
            windows = windows_of(num_latent, 5, num_shared)
            assert windows[0] == Window(0, 0, 0, is_last=len(windows) == 1)
            assert windows[-1].first_latent + 5 == num_latent
            assert [window.is_last for window in windows] == [False] * (len(windows) - 1) + [True]
            assert [window.number for window in windows] == list(range(len(windows)))
            for before, window in zip(windows, windows[1:], strict=False):
                assert window.num_shared == before.first_latent + 5 - window.first_latent
                assert num_shared <= window.num_shared < 5
            assert len(windows) == 1 + -(-(num_latent - 5) // (5 - num_shared))


def test_windows_begin_when_their_first_new_frame_is_shown():
    first, second, _ = windows_of(11, 5, 2)  # 41 frames, of which the first window has 17
    assert first.first_new_seconds(COMPRESSION, 8.0) == 0.0
    assert second.first_new_seconds(COMPRESSION, 8.0) == 17 / 8


def test_windows_of_a_markov_process_have_the_covariance_of_the_whole():
    """Frames that depend on the one before alone: any overlap gives a long clip exactly, through every window."""
    side, whole = 4, 12
    for num_shared in (1, 3):
        windows = windows_of(whole, side, num_shared)
        data = VideoData(StraightPath(), ar1(side, 0.8))
        field = Field(lambda x, t, data=data: data.velocity(x[..., 0, 0], t)[..., None, None], StraightPath())
        num_noises = side * len(windows)
        basis = torch.eye(num_noises, dtype=torch.float64)[:, None]
        clip: Tensor = torch.zeros(num_noises, 1, whole, 1, 1, dtype=torch.float64)
        for window in windows:
            begin, known = window.first_latent, torch.arange(side) < window.num_shared
            latents = clip[:, :, begin : begin + side]
            beginning = Beginning(latents, known.double())
            noise = basis[..., side * window.number : side * (window.number + 1), None, None]
            end = rk4(field, beginning.state(StraightPath(), noise), beginning.grid(steps(60)))
            assert torch.equal(end[:, :, known], latents[:, :, known])
            clip[:, :, begin : begin + side] = end
        frames = clip[:, 0, :, 0, 0]
        torch.testing.assert_close(frames.T @ frames, ar1(whole, 0.8), rtol=0, atol=5e-3)


def test_what_windows_share_goes_over_from_one_to_the_other():
    before, after = np.full((3, 2, 2, 3), 100, np.uint8), np.full((7, 2, 2, 3), 200, np.uint8)
    assert blended(before, after)[:, 0, 0, 0].tolist() == [125, 150, 175, 200, 200, 200, 200]
    same = np.random.default_rng(0).integers(0, 256, (7, 2, 2, 3), dtype=np.uint8)
    assert np.array_equal(blended(same[:3], same), same)


@pytest.mark.parametrize("num_latent", [17, 65])
def test_later_windows_are_those_of_a_shorter_clip_where_steps_are_even(num_latent):
    """So what is made first does not depend on how long the clip is, where windows fit without a rest."""
    longer, shorter = windows_of(num_latent, 5, 2), windows_of(num_latent - 3, 5, 2)
    assert (num_latent - 5) % 3 == 0
    assert longer[: len(shorter) - 1] == shorter[:-1]
