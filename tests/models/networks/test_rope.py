"""Rotary position embedding: depends on offsets only, keeps norms, uses every channel."""

import pytest
import torch

from models.networks.rope import axis_widths, rope_angles, rotate


def test_rope_depends_on_offsets_only():
    """<R(p) q, R(k) k> is the same for every pair of tokens with the same offset (Su et al. 2021, eq. 16)."""
    torch.manual_seed(0)
    grid = (3, 4, 5)
    angles = rope_angles(grid, 16).double()
    q, k = torch.randn(2, 16, dtype=torch.float64).unbind(0)
    tokens = 3 * 4 * 5
    rotated_q = rotate(q.expand(1, tokens, 1, 16), angles)[0, :, 0].reshape(*grid, 16)
    rotated_k = rotate(k.expand(1, tokens, 1, 16), angles)[0, :, 0].reshape(*grid, 16)
    first = (rotated_q[0, 0, 0] @ rotated_k[1, 2, 3]).item()
    second = (rotated_q[1, 1, 1] @ rotated_k[2, 3, 4]).item()
    other = (rotated_q[0, 0, 0] @ rotated_k[1, 2, 2]).item()
    assert first == pytest.approx(second, abs=1e-5)
    assert abs(first - other) > 1e-3


def test_rope_keeps_norms_and_uses_every_channel():
    x = torch.randn(2, 24, 3, 32)
    torch.testing.assert_close(rotate(x, rope_angles((2, 3, 4), 32)).norm(dim=-1), x.norm(dim=-1))
    for head_dim in (8, 16, 24, 32, 64, 128):
        widths = axis_widths(head_dim)
        assert sum(widths) == head_dim
        assert all(width % 2 == 0 and width > 0 for width in widths)
