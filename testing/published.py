"""Small published models with random weights, which diffusers and transformers write."""

from typing import Any

TINY_TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 20,
    "freq_dim": 16,
    "ffn_dim": 56,
    "num_layers": 2,
}
"""Settings of a transformer of Wan."""
