"""Resizing and cropping, in one step and in two."""

import numpy as np
import pytest
from PIL import Image

from data.synthetic import combinations, random_scene, render
from data.video.resize import decoding_size, resize_and_crop


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


@pytest.mark.parametrize(
    ("source", "shape"), [((1080, 1920), (64, 64)), ((1920, 1080), (112, 64)), ((1777, 1433), (85, 85))]
)
def test_pictures_decoded_smaller_become_the_same_clip(source, shape):
    """Rows are rounded to what the decoder can do; that changes neither the aspect ratio nor what is cut off."""
    size = decoding_size(source, [shape])
    assert 3 * max(shape) < min(size) < min(source) / 2
    frame = render(random_scene(0, 1, combinations()), 1, max(source))[0][: source[0], : source[1]]
    decoded = np.asarray(Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BOX))
    for position in (0, 0.5, 1):
        expected = resize_and_crop(frame[None], shape[0], shape[1], position)
        found = resize_and_crop(decoded[None], shape[0], shape[1], position, shown=source)
        assert np.abs(found.astype(int) - expected).max() <= 6


def test_pictures_are_decoded_as_they_are_where_they_are_hardly_larger_than_the_clip():
    assert decoding_size((240, 320), [(64, 64), (24, 24)]) == (240, 320)
    assert decoding_size((1080, 1920), [(24, 24), (144, 256)]) == (1080, 1920)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 13), (121, 161), (2160, 3840)])
def test_resize_takes_pictures_of_any_size(size):
    for height, width in ((32, 32), (48, 32), (64, 112)):
        assert resize_and_crop(np.zeros((1, *size, 3), np.uint8), height, width).shape == (1, height, width, 3)
