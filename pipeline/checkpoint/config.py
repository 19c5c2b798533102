"""Settings of what a checkpoint holds."""

from pydantic import BaseModel, ConfigDict, Field


class LoraConfig(BaseModel):
    """Which layers get adapters, and how large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)  # the adapter's output is scaled by alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of the adapter's input
    # Linear layers whose names end so, of the DiT and its caption encoder; "blocks.0.qkv" names one.
    targets: tuple[str, ...] = Field(
        default=("qkv", "out", "cross_query", "cross_key_value", "cross_out", "up", "down"), min_length=1
    )
