"""Joint blocks: video and caption tokens attend to each other in one self-attention, each kind with its own weights.

These are the MM-DiT blocks of Esser et al. 2024 (arXiv 2403.03206, section 4). Two streams of tokens, of equal width,
meet in the attention only; norms, projections, feed-forward layers and modulation are per stream. The last joint block
leaves the caption as it is, because nothing after it reads that stream.
"""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import FeedForward, HeadNorm
from models.networks.config import DiTConfig
from models.networks.modulation import (
    Groups,
    add_gated,
    block_modulation,
    modulation_vectors,
    normed_and_modulated,
)
from models.networks.rope import rotate
from models.networks.token_layout import TokenLayout


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

    def before(
        self, x: Float[Tensor, "b n d"], vectors: tuple[Tensor, ...], groups: Groups | None = None
    ) -> tuple[Tensor, Tensor]:
        """What attention takes: normalised queries and keys (keys only), as heads side by side, and values.

        Args:
            groups: as `normed_and_modulated` takes them.
        """
        shift, scale, *_ = vectors
        projected = self.qkv(normed_and_modulated(x, self.norm, shift, scale, groups))
        projected = rearrange(projected, "b n (h d) -> b n h d", h=(self.num_normed + 1) * self.heads)
        normed, values = projected.split([self.num_normed * self.heads, self.heads], dim=2)
        return self.qk_norm(normed), values

    def after(
        self,
        x: Float[Tensor, "b n d"],
        attended: Float[Tensor, "b n heads c"],
        vectors: tuple[Tensor, ...],
        groups: Groups | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Add what the tokens attended to, then the feed-forward layer; not of a read-only stream."""
        assert self.out is not None
        assert self.feed_forward is not None
        _, _, gate_1, shift_2, scale_2, gate_2 = vectors
        x = add_gated(x, gate_1, self.out(rearrange(attended, "b n h d -> b n (h d)")).float(), groups)
        return add_gated(
            x, gate_2, self.feed_forward(normed_and_modulated(x, self.norm, shift_2, scale_2, groups)).float(), groups
        )


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
        angles: Float[Tensor, "n half"],
        layout: TokenLayout,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Refine both streams.

        Args:
            tokens: of the video and of the caption.
            angles: rotation angles of each video token, see `rope_angles`; caption tokens are not rotated.
            layout: which tokens belong together.
        """
        video, caption = tokens
        video_vectors = self.video.vectors(condition, shared)
        # Caption tokens are of no frame: where frames have times of their own, they get the mean over the frames.
        caption_vectors = self.caption.vectors(
            layout.of_clips(condition), None if shared is None else layout.of_clips(shared)
        )
        caption_vectors = tuple(layout.of_words(each) for each in caption_vectors)

        q_k, v = self.video.before(video, video_vectors, layout.groups)
        q, k = rotate(q_k, angles).chunk(2, dim=2)
        caption_q_k, caption_v = self.caption.before(caption, caption_vectors)
        caption_q, caption_k = (None, caption_q_k) if self.caption.is_read_only else caption_q_k.chunk(2, dim=2)
        to_video, to_caption = layout.joint_attention((q, k, v), (caption_q, caption_k, caption_v))
        if to_caption is not None:
            caption = self.caption.after(caption, to_caption, caption_vectors)
        return self.video.after(video, to_video, video_vectors, layout.groups), caption
