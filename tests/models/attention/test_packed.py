"""Attention within the segments of a packed sequence."""

import pytest
import torch

from models.attention.attention import attention
from models.attention.packed import Segments, packed_attention

LENGTHS = [  # of queries and of keys
    ((5, 5, 3, 5), (5, 5, 3, 5)),
    ((4, 4, 4), (4, 4, 4)),
    ((6, 6, 2), (1, 3, 3)),
    ((3, 0, 2), (2, 4, 0)),
    ((7,), (2,)),
]


def alone(q, k, v, query_lengths, key_lengths):
    """Each segment by a call of its own."""
    parts = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    return torch.cat([attention(a[None], b[None], c[None])[0] if len(b) else a * 0 for a, b, c in parts])


@pytest.mark.parametrize(("query_lengths", "key_lengths"), LENGTHS)
def test_packed_is_each_segment_alone(query_lengths, key_lengths):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), 2, 8, dtype=torch.float64, requires_grad=True)
        for lengths in (query_lengths, key_lengths, key_lengths)
    )
    packed = packed_attention(q, k, v, Segments.of(query_lengths), Segments.of(key_lengths))
    expected = alone(q, k, v, query_lengths, key_lengths)
    torch.testing.assert_close(packed, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (packed, expected))
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


def test_packed_is_padded_with_a_mask():
    torch.manual_seed(0)
    lengths = [3, 6, 1, 6]
    q, k, v = (torch.randn(16, 2, 8, requires_grad=True) for _ in range(3))
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    q_padded, k_padded, v_padded = (torch.zeros(4, 6, 2, 8).masked_scatter(mask[..., None, None], x) for x in (q, k, v))
    expected = attention(q_padded, k_padded, v_padded, mask)[mask]
    packed = packed_attention(q, k, v, Segments.of(lengths), Segments.of(lengths))
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    gradients, wanted = (torch.autograd.grad((x * weights).sum(), (q, k, v)) for x in (packed, expected))
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-6)


def test_segments_of_equal_shape_that_are_neighbours_are_one_batch(monkeypatch):
    shapes = []

    def spy(q, k, v):
        shapes.append((tuple(q.shape[:2]), tuple(k.shape[:2])))
        return attention(q, k, v)

    monkeypatch.setattr("models.attention.packed.attention", spy)
    x = torch.randn(14, 1, 8)
    segments = Segments.of((4, 4, 2, 4))
    packed_attention(x, x, x, segments, segments)
    assert shapes == [((2, 4), (2, 4)), ((1, 2), (1, 2)), ((1, 4), (1, 4))]


def test_segments():
    segments = Segments.of((2, 0, 5))
    assert (segments.lengths, segments.max_length, segments.total) == ((2, 0, 5), 5, 7)
    assert segments.ends.tolist() == [0, 2, 2, 7]
    assert segments.ends.dtype == torch.int32
    assert Segments.of(()).max_length == 0


def test_segments_that_do_not_fit_are_refused():
    x = torch.zeros(5, 1, 8)
    with pytest.raises(ValueError, match="query has 5 tokens, but its segments have 4"):
        packed_attention(x, x, x, Segments.of((4,)), Segments.of((5,)))
    with pytest.raises(ValueError, match="key has 5 tokens, but its segments have 6"):
        packed_attention(x, x, x, Segments.of((5,)), Segments.of((6,)))
    with pytest.raises(ValueError, match="1 segments of queries cannot attend to 2 of keys"):
        packed_attention(x, x, x, Segments.of((5,)), Segments.of((3, 2)))
