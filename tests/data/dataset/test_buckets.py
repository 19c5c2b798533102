"""Several shapes, several datasets: which clip goes where, what a batch holds, and what a change makes anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset.buckets import (
    Bucket,
    BucketChoice,
    SourceShape,
    batch_sizes,
    bucket_for,
    choose_buckets,
    cropped_share,
)
from testing.shapes import ALL, SHORT, SQUARE, STILL, TALL, WIDE


@pytest.mark.parametrize(
    ("height", "width", "seconds", "expected"),
    [
        (360, 640, 5.0, WIDE),
        (640, 360, 5.0, TALL),
        (480, 480, 5.0, SQUARE),
        (480, 480, 0.6, SHORT),  # half a second is 5 frames at 8 per second, a whole one 9
        (480, 480, 1.0, SQUARE),
        (360, 640, 0.6, SHORT),  # rather cropped than left out
        (480, 480, 0.0, STILL),
    ],
)
def test_a_scene_goes_where_it_fits_and_least_is_cropped(height, width, seconds, expected):
    assert bucket_for(SourceShape(height, width, seconds), ALL) == expected


def test_too_short_for_every_bucket():
    assert bucket_for(SourceShape(480, 480, 0.4), (WIDE, SQUARE, SHORT)) is None


def test_of_equal_shapes_the_one_that_does_not_enlarge_and_then_the_larger():
    small, large = Bucket(height=64, width=64), Bucket(height=128, width=128)
    assert bucket_for(SourceShape(100, 100, 9), (small, large)) == small
    assert bucket_for(SourceShape(128, 128, 9), (small, large)) == large


def test_cropping_is_the_share_of_the_picture_outside_the_bucket():
    assert cropped_share(SourceShape(100, 200, 1), SQUARE) == pytest.approx(0.5)
    assert cropped_share(SourceShape(200, 100, 1), SQUARE) == pytest.approx(0.5)
    assert cropped_share(SourceShape(90, 160, 1), WIDE) == pytest.approx(1 - (16 / 9) / 2)


def test_buckets_follow_the_histogram():
    shapes = [SourceShape(720, 1280, 9)] * 70 + [SourceShape(1280, 720, 9)] * 25 + [SourceShape(480, 480, 0)] * 5
    chosen = choose_buckets(shapes, BucketChoice(pixels=4096, num_frames=(17, 1), max_aspects=3))
    assert [(b.num_frames, b.height, b.width) for b in chosen] == [(17, 48, 80), (17, 80, 48), (1, 64, 64)]
    assert choose_buckets(list(reversed(shapes)), BucketChoice(num_frames=(1, 17))) == chosen
    one = choose_buckets(shapes, BucketChoice(max_aspects=1))
    assert len(one) == 1
    with pytest.raises(ValueError, match="no source"):
        choose_buckets([], BucketChoice())


@given(
    st.lists(st.tuples(st.integers(16, 4000), st.integers(16, 4000), st.floats(0, 20)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([16, 32, 64]),
)
def test_chosen_buckets_are_within_bounds_and_never_worse_than_a_square(sources, max_aspects, multiple):
    shapes = [SourceShape(*source) for source in sources]
    choice = BucketChoice(pixels=16384, num_frames=(1, 9), max_aspects=max_aspects, side_multiple=multiple)
    chosen = choose_buckets(shapes, choice)
    assert len({(b.height, b.width) for b in chosen}) <= max_aspects
    assert all(0.75 * 16384 <= b.height * b.width <= 16384 for b in chosen)
    assert all(b.height % multiple == b.width % multiple == 0 for b in chosen)
    square = Bucket(num_frames=1, height=128, width=128)
    lost = [min(cropped_share(shape, bucket) for bucket in chosen) for shape in shapes]
    assert np.mean(lost) <= np.mean([cropped_share(shape, square) for shape in shapes]) + 1e-6


def test_a_pixel_count_that_no_multiple_fills_still_has_buckets():
    for pixels, multiple, size in ((400, 16, (16, 16)), (25000, 128, (128, 128)), (6000, 64, (64, 64))):
        choice = BucketChoice(pixels=pixels, side_multiple=multiple, max_aspects=1)
        (bucket,) = choose_buckets([SourceShape(100, 100, 9)], choice)
        assert (bucket.height, bucket.width) == size


def test_batches_have_equal_tokens():
    sizes = batch_sizes(ALL, global_batch=8, multiple=4)
    tokens = {bucket.name: bucket.num_latent_positions for bucket in ALL}
    assert tokens == {WIDE.name: 96, TALL.name: 96, SQUARE.name: 108, SHORT.name: 72, STILL.name: 36}
    assert sizes == {SQUARE.name: 8, WIDE.name: 8, TALL.name: 8, SHORT.name: 12, STILL.name: 24}
    assert all(size * tokens[name] <= 8 * 108 for name, size in sizes.items())
    assert batch_sizes([SQUARE], 6, 4) == {SQUARE.name: 6}


def test_bucket_names_the_nearest_length():
    with pytest.raises(ValueError, match="use 13 or 17"):
        Bucket(num_frames=16)
    with pytest.raises(ValueError, match="use 64 or 80"):
        Bucket(height=70)
