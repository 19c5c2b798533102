"""Options of the diffusion transformer's blocks (`DiTConfig`). Nothing here loads torch."""

from typing import Literal

AttentionSpan = Literal["full", "space", "time"]
"""Which tokens a block's self-attention relates: all, those of one frame, or those at one place in all frames."""
