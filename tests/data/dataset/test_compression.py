"""Shape arithmetic between clips and latents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset.compression import COMPRESSION, Compression

OTHER = Compression(temporal_factor=2, spatial_factor=16)


@given(k=st.integers(0, 300), m=st.integers(1, 50))
def test_chunk_lengths(k, m):
    lengths = COMPRESSION.chunk_lengths(4 * k + 1, 4 * m)
    assert sum(lengths) == 4 * k + 1
    assert max(lengths) <= 4 * m
    assert [length % 4 for length in lengths] == [1] + [0] * (len(lengths) - 1)
    assert len(lengths) == -(-(4 * k + 1) // (4 * m))  # as few as can be
    assert sum(COMPRESSION.num_latent_frames(length) for length in lengths) == k + 1
    assert COMPRESSION.num_frames(k + 1) == 4 * k + 1


@pytest.mark.parametrize(("num_frames", "most"), [(8, 8), (9, 6), (9, 0)])
def test_chunks_that_do_not_fit_are_refused(num_frames, most):
    with pytest.raises(ValueError, match="cannot be cut"):
        COMPRESSION.chunk_lengths(num_frames, most)


@given(k=st.integers(0, 300), factor=st.integers(1, 8))
def test_lengths_and_latent_frames_are_inverse(k, factor):
    compression = Compression(factor, 8)
    num_frames = compression.num_frames(k + 1)
    assert num_frames == factor * k + 1
    assert compression.fits_length(num_frames)
    assert compression.num_latent_frames(num_frames) == k + 1


def test_other_factors_give_other_grids_and_messages():
    assert COMPRESSION.latent_grid(17, 64, 48) == (5, 8, 6)
    assert OTHER.latent_grid(17, 64, 48) == (9, 4, 3)
    with pytest.raises(ValueError, match=r"num_frames is 16, .* 2k \+ 1 frames .*: use 15 or 17"):
        OTHER.check_length(16)
    for shape in ((16, 64, 64), (17, 64, 40)):
        with pytest.raises(ValueError, match=r"it takes 2k \+ 1 frames and multiples of 16 pixels"):
            OTHER.latent_grid(*shape)
