"""Settings of what a checkpoint holds."""

from pydantic import Field

from data.records import Settings


class LoraConfig(Settings):
    """Which layers get low-rank adapters (LoRA), and how large these are."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters: the inner width of the two matrices that are added to each layer."""
    alpha: float = Field(default=16.0, gt=0)
    """The output of an adapter is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of an adapter's inputs that are set to 0 in training, in [0, 1)."""
    targets: tuple[str, ...] = Field(
        default=("qkv", "out", "cross_query", "cross_key_value", "cross_out", "up", "down"), min_length=1
    )
    """Ends of the names of the linear layers that get adapters, in the DiT and its caption encoder, such as "qkv"."""
