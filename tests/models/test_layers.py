"""RMS norms and the time embedding."""

import pytest
import torch

from models.layers import HeadNorm, RMSNorm, time_embedding


def test_time_embedding_has_unit_norm():
    """Holderrieth & Erives 2025, section 5.1: || sqrt(2/d) [cos, sin] || = 1."""
    torch.testing.assert_close(time_embedding(torch.linspace(0, 1, 7), 64).norm(dim=-1), torch.ones(7))


def test_rms_norm():
    x = torch.randn(3, 8)
    torch.testing.assert_close(RMSNorm(8)(x).square().mean(-1), torch.ones(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_keeps_the_direction_and_gives_each_head_its_gain(dtype):
    """Henry et al. 2020, eq. 4: g q / ||q||, here with the root mean square as the unit of length."""
    x = torch.randn(2, 5, 3, 16).to(dtype)
    norm = HeadNorm(3)
    norm.gain.data[:, 0] = torch.tensor([1.0, 2.0, 0.5])
    out = norm(x)
    assert out.dtype == dtype
    exact = dtype == torch.float32
    torch.testing.assert_close(
        out.float().square().mean(-1).sqrt(),
        norm.gain.data[:, 0].expand(2, 5, 3),
        rtol=1e-5 if exact else 1e-2,
        atol=0,
    )
    similarity = torch.cosine_similarity(out.float(), x.float(), dim=-1)
    torch.testing.assert_close(similarity, torch.ones(2, 5, 3), rtol=0, atol=1e-6 if exact else 1e-4)
    assert torch.equal(norm(torch.zeros(1, 1, 3, 16)), torch.zeros(1, 1, 3, 16))
