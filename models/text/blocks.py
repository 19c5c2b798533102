"""The transformer block of the caption encoders."""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.attention.attention import attention
from models.attention.packed import Segments, packed_attention
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

    def forward(self, x: Float[Tensor, "b n d"], tokens: Bool[Tensor, "b n"] | Segments) -> Float[Tensor, "b n d"]:
        """Every token attends to every token of its caption that is no padding.

        Args:
            tokens: which are no padding; or, of a packed sequence (b = 1), how many each caption has.
        """
        qkv = self.qkv(self.attention_norm(x))
        q, k, v = rearrange(qkv, "b n (three heads d) -> three b n heads d", three=3, heads=self.heads)
        if isinstance(tokens, Segments):
            attended = packed_attention(q[0], k[0], v[0], tokens, tokens)[None]
        else:
            attended = attention(q, k, v, tokens)
        x = x + self.out(rearrange(attended, "b n heads d -> b n (heads d)"))
        return x + self.feed_forward(self.feed_forward_norm(x))
