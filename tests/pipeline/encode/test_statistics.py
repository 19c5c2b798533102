"""normalize and denormalize are inverse."""

import pytest
import torch

from data.dataset.manifest import LatentStats
from pipeline.encode.statistics import denormalize, normalize


def test_normalize_and_denormalize_are_inverse():
    stats = LatentStats(mean=[0.3, -1.0], std=[2.0, 0.5])
    x = torch.randn(2, 2, 1, 3, 3)
    torch.testing.assert_close(denormalize(normalize(x, stats), stats), x)
    assert float(normalize(torch.tensor([2.3, -0.5])[None, :, None, None, None], stats).sum()) == pytest.approx(2.0)
