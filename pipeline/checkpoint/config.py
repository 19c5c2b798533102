"""Settings of what a checkpoint holds."""

from pydantic import Field

from data.records import Settings


class LoraConfig(Settings):
    """Which layers get adapters, and how large."""

    rank: int = Field(default=16, ge=1)
    """TODO"""
    alpha: float = Field(default=16.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input."""
    targets: tuple[str, ...] = Field(
        default=("qkv", "out", "cross_query", "cross_key_value", "cross_out", "up", "down"), min_length=1
    )
    """Linear layers whose names end so, of the DiT and its caption encoder; "blocks.0.qkv" names one."""
