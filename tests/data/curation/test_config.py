"""A fraction outside 0 to 1 is refused."""

import pytest

from data.curation.config import FilterConfig


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_fraction_lies_between_0_and_1(value):
    with pytest.raises(ValueError, match="text_fraction"):
        FilterConfig(text_fraction=value)
