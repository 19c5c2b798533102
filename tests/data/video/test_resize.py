"""Resizing and cropping, in one step and in two."""

import av
import numpy as np
import pytest
from PIL import Image

from data.synthetic import combinations, random_scene, render
from data.video.decoders.pyav_reader import SCALING
from data.video.resize import reading_size, resize_and_crop


def test_resize_covers_and_crops_the_middle():
    frames = np.zeros((1, 40, 100, 3), np.uint8)
    frames[:, :, 30:70] = 200  # the middle square
    out = resize_and_crop(frames, 32, 32)
    assert out.shape == (1, 32, 32, 3)
    assert out[0, :, 2:-2].min() == 200


def test_resizing_large_pictures_in_two_steps_shows_as_much_as_in_one():
    frame = render(random_scene(0, 1, combinations()), 1, 1080)[0]
    box = (0, 135, 1080, 945)
    exact = np.asarray(Image.fromarray(frame).resize((128, 96), Image.Resampling.BICUBIC, box=box))
    assert np.abs(resize_and_crop(frame[None], 96, 128)[0].astype(int) - exact).max() <= 3


@pytest.mark.parametrize("aspect", [(720, 1280), (1280, 720), (1000, 1000), (1777, 1433)])
def test_a_picture_read_at_its_covering_size_is_only_cropped(aspect):
    height, width = 64, 112
    size = reading_size(aspect, height, width)
    assert size is not None
    assert min(high - low for high, low in zip(size, (height, width), strict=True)) == 0
    assert size[1] / size[0] == pytest.approx(aspect[1] / aspect[0], rel=0.01)
    frame = np.random.default_rng(0).integers(0, 255, (1, *size, 3), np.uint8)
    down, across = size[0] - height, size[1] - width
    for position, (top, left) in {0: (0, 0), 0.5: (round(down / 2), round(across / 2)), 1: (down, across)}.items():
        cropped = resize_and_crop(frame, height, width, position, shown=aspect)
        assert np.array_equal(cropped, frame[:, top : top + height, left : left + width])


def test_of_a_long_picture_only_the_part_that_is_kept_is_scaled():
    assert reading_size((16, 1600), 64, 64) is None
    assert resize_and_crop(np.zeros((1, 16, 1600, 3), np.uint8), 64, 64).shape == (1, 64, 64, 3)


def zone_plate(side: int) -> np.ndarray:
    """Rings that become finer towards the corners, up to the finest that pixels can show."""
    down, across = np.mgrid[:side, :side] - side / 2
    grey = np.round(127.5 + 100 * np.cos(np.pi * (down**2 + across**2) / (1.5 * side))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def test_rings_too_fine_for_a_clip_become_grey_and_no_other_rings():
    """Beside Pillow's bicubic filter, which is antialiased, and bilinear sampling, which is not."""
    picture = av.VideoFrame.from_ndarray(zone_plate(1024), format="rgb24").reformat(format="yuv444p")
    found = picture.reformat(128, 128, "rgb24", interpolation=SCALING).to_ndarray()[..., 1].astype(float)
    pillow = np.asarray(Image.fromarray(zone_plate(1024)).resize((128, 128), Image.Resampling.BICUBIC))[..., 1]
    sampled = zone_plate(1024)[4::8, 4::8, 1].astype(float)
    down, across = np.mgrid[:128, :128] - 63.5
    too_fine = np.hypot(down, across) > 20  # of the clip's pixels: at a radius of 12, rings have a period of 16 pixels
    aliases = [float(grey[too_fine].std()) for grey in (found, pillow.astype(float), sampled)]
    assert aliases[0] <= 1.1 * aliases[1] + 0.5
    assert aliases[0] < 0.1 * aliases[2]


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 13), (121, 161), (2160, 3840)])
def test_resize_takes_pictures_of_any_size(size):
    for height, width in ((32, 32), (48, 32), (64, 112)):
        assert resize_and_crop(np.zeros((1, *size, 3), np.uint8), height, width).shape == (1, height, width, 3)
