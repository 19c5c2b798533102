"""Joint blocks: video and caption tokens attend to each other in one self-attention, each kind with its own weights.

These are the MM-DiT blocks of Esser et al. 2024 (arXiv 2403.03206, section 4). Two streams of tokens, of equal width,
meet in the attention only; norms, projections, feed-forward layers and modulation are per stream. The last joint block
leaves the caption as it is, because nothing after it reads that stream.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.layers import FeedForward, HeadNorm
from models.networks.config import DiTConfig
from models.networks.modulation import add_gated, block_modulation, modulate, modulation_vectors
from models.networks.protocol import SequenceParallelPlan
from models.networks.rope import rotate


class Stream(nn.Module):
    """The layers of a block for one kind of token.

    Args:
        is_read_only: the tokens give keys and values, and stay as they are.
    """

    def __init__(self, config: DiTConfig, *, is_read_only: bool = False) -> None:
        super().__init__()
        width, self.heads, self.is_read_only = config.width, config.heads, is_read_only
        self.num_normed = 1 if is_read_only else 2  # keys, or queries and keys
        self.num_vectors = 2 if is_read_only else 6
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the condition gives scale and shift
        self.qkv = nn.Linear(width, (self.num_normed + 1) * width, bias=False)  # the shift before it acts as a bias
        self.qk_norm = HeadNorm(self.num_normed * config.heads)
        self.out = None if is_read_only else nn.Linear(width, width, bias=False)
        self.feed_forward = None if is_read_only else FeedForward(width, config.mlp_ratio)
        self.modulation = block_modulation(config, self.num_vectors)

    def vectors(
        self, condition: Float[Tensor, "b f d"], shared: Float[Tensor, "b f k"] | None
    ) -> tuple[Float[Tensor, "b f d"], ...]:
        """Shifts, scales and gates, see `modulation_vectors`."""
        return modulation_vectors(self.modulation, condition, shared, self.num_vectors)

    def before(self, x: Float[Tensor, "b n d"], vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """What attention takes: normalised queries and keys (keys only), as heads side by side, and values."""
        shift, scale, *_ = vectors
        projected = self.qkv(modulate(self.norm(x), shift, scale))
        projected = rearrange(projected, "b n (h d) -> b n h d", h=(self.num_normed + 1) * self.heads)
        normed, values = projected.tensor_split([self.num_normed * self.heads], dim=2)
        return self.qk_norm(normed), values

    def after(
        self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b n heads c"], vectors: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n d"]:
        """Add what the tokens attended to, then the feed-forward layer; not of a read-only stream."""
        assert self.out is not None
        assert self.feed_forward is not None
        _, _, gate_1, shift_2, scale_2, gate_2 = vectors
        x = add_gated(x, gate_1, self.out(rearrange(attended, "b n h d -> b n (h d)")).float())
        return add_gated(x, gate_2, self.feed_forward(modulate(self.norm(x), shift_2, scale_2)).float())


class JointBlock(nn.Module):
    """Self-attention among video and caption tokens, and a feed-forward layer for each kind.

    Args:
        is_last: the caption tokens are left as they are.
    """

    def __init__(self, config: DiTConfig, *, is_last: bool) -> None:
        super().__init__()
        self.video = Stream(config)
        self.caption = Stream(config, is_read_only=is_last)

    def forward(
        self,
        tokens: tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]],
        condition: Float[Tensor, "b f d"],
        shared: Float[Tensor, "b f k"] | None,
        mask: Bool[Tensor, "b keys"],
        angles: Float[Tensor, "n half"],
        plan: SequenceParallelPlan,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Refine both streams.

        Args:
            tokens: of the video and of the caption.
            mask: which keys are no padding, see `SequenceParallelPlan.join_caption`.
            angles: rotation angles of each video token, see `rope_angles`; caption tokens are not rotated.
        """
        video, caption = tokens
        video_vectors = self.video.vectors(condition, shared)
        # Caption tokens are of no frame: where frames have times of their own, they get the mean over the frames.
        caption_vectors = self.caption.vectors(
            condition.mean(1, keepdim=True), None if shared is None else shared.mean(1, keepdim=True)
        )

        q_k, v = self.video.before(video, video_vectors)
        q, k = rotate(q_k, angles).chunk(2, dim=2)
        caption_q_k, caption_v = self.caption.before(caption, caption_vectors)
        *caption_q, caption_k = caption_q_k.chunk(self.caption.num_normed, dim=2)
        attended = plan.attention(
            torch.cat([q, *caption_q], dim=1),
            torch.cat([k, caption_k], dim=1),
            torch.cat([v, caption_v], dim=1),
            mask,
        )
        to_video, to_caption = attended.tensor_split([video.shape[1]], dim=1)
        if not self.caption.is_read_only:
            caption = self.caption.after(caption, to_caption, caption_vectors)
        return self.video.after(video, to_video, video_vectors), caption
