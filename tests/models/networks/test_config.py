"""A width that the heads do not divide is refused with the nearest that they do."""

import pytest

from models.networks.config import DiTConfig


def test_dit_config_names_the_nearest_heads():
    with pytest.raises(ValueError, match=r"heads is 5.*use 4 heads"):
        DiTConfig(width=128, heads=5)
