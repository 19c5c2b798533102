"""Names of the attention kernels. Nothing here loads torch."""

from typing import Literal

AttentionBackend = Literal[
    "auto", "flash-attn-3", "cudnn", "flash-attn-4", "flash-attn-2", "torch-varlen", "matmul", "blocked", "sdpa"
]
"""The name of a row of `models.attention.backends.BACKENDS`, or "auto": the first row that takes the call."""
