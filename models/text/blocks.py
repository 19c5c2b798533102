"""The transformer block of the caption encoders."""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.attention.attention import attention
from models.layers import FeedForward, RMSNorm


class TextBlock(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = FeedForward(width, 4)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Every token attends to every token that is no padding."""
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b n heads d", three=3, heads=self.heads)
        x = x + self.out(rearrange(attention(q, k, v, mask), "b n heads d -> b n (heads d)"))
        return x + self.feed_forward(self.feed_forward_norm(x))
