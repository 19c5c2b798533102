"""Rotary position embedding: depends on offsets only, keeps norms, uses every channel."""

import pytest
import torch

from models.networks.dit_options import RopeConfig
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


def test_a_grid_that_was_trained_has_the_same_angles_under_every_rule():
    plain = rope_angles((3, 4, 5), 32)
    for rule in ("interpolate", "ntk"):
        assert torch.equal(
            rope_angles((3, 4, 5), 32, rope=RopeConfig(trained_grid=(3, 4, 6), extrapolation=rule)), plain
        )


def test_interpolated_positions_stay_within_those_of_training():
    """Chen et al. 2023, eq. 4: position m of an axis that is twice as long turns as m / 2 did; other axes as before."""
    rope = RopeConfig(trained_grid=(2, 4, 4), extrapolation="interpolate")
    large = rope_angles((4, 4, 4), 32, rope=rope).reshape(4, 4, 4, -1)
    small = rope_angles((2, 4, 4), 32).reshape(2, 4, 4, -1)
    torch.testing.assert_close(large[::2], small)
    assert large.amax() <= small.amax() + 2


def test_ntk_scaling_is_another_theta_per_axis():
    """Peng et al. 2023, eq. 16: theta' = theta s^(d / (d - 2)); the slowest pair turns s times slower, the fastest one
    as before.
    """
    widths, s = axis_widths(64), 3
    rope = RopeConfig(trained_grid=(2, 2, 2), extrapolation="ntk")
    angles = rope_angles((6, 2, 2), 64, rope=rope).reshape(6, 2, 2, -1)[..., : widths[0] // 2]
    theta = 100.0 * s ** (widths[0] / (widths[0] - 2))
    expected = rope_angles((6, 2, 2), 64, rope=RopeConfig(theta=theta)).reshape(6, 2, 2, -1)[..., : widths[0] // 2]
    plain = rope_angles((6, 2, 2), 64).reshape(6, 2, 2, -1)[..., : widths[0] // 2]
    torch.testing.assert_close(angles, expected)
    assert torch.equal(angles[..., 0], plain[..., 0])
    torch.testing.assert_close(angles[..., -1] * s, plain[..., -1])


def test_channels_are_split_between_the_axes_as_told():
    """Channels that an axis does not get do not turn with it; an axis without channels has no positions."""
    angles = rope_angles((3, 2, 2), 16, rope=RopeConfig(axes=(4, 12, 0))).reshape(3, 2, 2, 8)
    assert torch.equal(angles[:, :, 0], angles[:, :, 1])
    assert torch.equal(angles[0, ..., :2], torch.zeros(2, 2, 2))
    assert (angles[1, 0, 0, :2] > 0).all()
    assert (angles[0, 1, 0, 2:] > 0).all()
