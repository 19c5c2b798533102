"""TODO models/autoencoder/test_shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.autoencoder.shapes import chunk_lengths, num_latent_frames, num_pixel_frames


@given(k=st.integers(0, 300), m=st.integers(1, 50))
def test_chunk_lengths(k, m):
    lengths = chunk_lengths(4 * k + 1, 4 * m)
    assert sum(lengths) == 4 * k + 1
    assert max(lengths) <= 4 * m
    assert [length % 4 for length in lengths] == [1] + [0] * (len(lengths) - 1)
    assert len(lengths) == -(-(4 * k + 1) // (4 * m))  # as few as can be
    assert sum(num_latent_frames(length) for length in lengths) == k + 1
    assert num_pixel_frames(k + 1) == 4 * k + 1


@pytest.mark.parametrize(("num_frames", "most"), [(8, 8), (9, 6), (9, 0)])
def test_chunks_that_do_not_fit_are_refused(num_frames, most):
    with pytest.raises(ValueError, match="cannot be cut"):
        chunk_lengths(num_frames, most)
