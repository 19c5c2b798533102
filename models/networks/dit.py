"""The spatiotemporal diffusion transformer: the velocity of a noisy latent clip at a time, given a caption.

Latents are cut into patches, one token each. Every token attends to every other in space and time, or to those of its
frame or its place (`token_attention`), and to the caption by cross-attention; the time and the whole caption shift,
scale and gate the layers by adaLN-zero (Peebles & Xie 2022, section 3.2). Queries and keys are normalised per head and
rotated by their position in time, height and width (rope).
"""

from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.layers import BlockStack, FeedForward, HeadNorm, RMSNorm, TimeEmbedder
from models.networks.clip_condition import ClipCondition
from models.networks.config import DiTConfig
from models.networks.dit_options import AttentionSpan
from models.networks.joint import JointBlock
from models.networks.jump_condition import JumpCondition
from models.networks.known_frames import input_channels, with_known_channels
from models.networks.modulation import (
    add_gated,
    block_modulation,
    modulation_vectors,
    normed_and_modulated,
    shared_modulation,
    zero,
)
from models.networks.protocol import Conditions, JumpEnd, NoisyClips, Velocity, VelocityNetwork
from models.networks.rope import rope_angles, rotate
from models.networks.token_layout import BatchLayout, TokenLayout
from models.text.caption import Caption, strongest
from models.text.encoder import build_encoder
from models.text.packing import CaptionPacking


def patchify(x: Float[Tensor, "b c t h w"], patch_size: int) -> Float[Tensor, "b n d"]:
    """Cut every latent frame into squares, one token each, in the order of time, then rows, then columns."""
    return rearrange(x, "b c t (h p) (w q) -> b (t h w) (c p q)", p=patch_size, q=patch_size)


def unpatchify(
    tokens: Float[Tensor, "b n d"], patch_size: int, grid: tuple[int, int, int]
) -> Float[Tensor, "b c t h w"]:
    """The inverse of `patchify`, for a (t, h, w) grid of tokens."""
    t, h, w = grid
    return rearrange(tokens, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h, w=w, p=patch_size, q=patch_size)


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the caption, feed-forward; the condition gates the first and the last."""

    def __init__(self, config: DiTConfig, span: AttentionSpan = "full") -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.span: AttentionSpan = span
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the condition gives scale and shift
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # the shift before it acts as a bias
        self.qk_norm = HeadNorm(2 * config.heads)
        self.out = nn.Linear(width, width, bias=False)
        self.cross_norm = RMSNorm(width)
        self.cross_query = nn.Linear(width, width, bias=False)
        self.cross_key_value = nn.Linear(config.text.width, 2 * width, bias=False)
        self.cross_query_norm, self.cross_key_norm = HeadNorm(config.heads), HeadNorm(config.heads)
        self.cross_out = nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, config.mlp_ratio)
        # Zero at first, as the modulation is: every block is the identity.
        nn.init.zeros_(self.cross_out.weight)
        self.modulation = block_modulation(config)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b f d"],
        shared: Float[Tensor, "b f k"] | None,
        text: Float[Tensor, "b m e"],
        angles: Float[Tensor, "n half"],
        layout: TokenLayout,
    ) -> Float[Tensor, "b n d"]:
        """Refine the tokens.

        Args:
            condition: silu of the embedded time and caption, one per sample (f = 1) or per latent frame.
            shared: the vectors that all blocks share, see `modulation_vectors`.
            text: encoded caption, for cross-attention.
            angles: rotation angles of each token, see `rope_angles`.
            layout: which tokens belong together.
        """
        vectors = modulation_vectors(self.modulation, condition, shared)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = vectors

        h = normed_and_modulated(x, self.norm, shift_1, scale_1, layout.groups)
        q_k, v = rearrange(self.qkv(h), "b n (h d) -> b n h d", h=3 * self.heads).split(
            [2 * self.heads, self.heads], dim=2
        )
        q, k = rotate(self.qk_norm(q_k), angles).chunk(2, dim=2)
        h = layout.self_attention(q, k, v, self.span)
        h = self.out(rearrange(h, "b n heads d -> b n (heads d)"))
        x = add_gated(x, gate_1, h.float(), layout.groups)

        q = self.cross_query_norm(rearrange(self.cross_query(self.cross_norm(x)), "b n (h d) -> b n h d", h=self.heads))
        k, v = rearrange(self.cross_key_value(text), "b m (two h d) -> two b m h d", two=2, h=self.heads)
        h = layout.cross_attention(q, self.cross_key_norm(k), v)
        x = x + self.cross_out(rearrange(h, "b n h d -> b n (h d)"))

        h = self.feed_forward(normed_and_modulated(x, self.norm, shift_2, scale_2, layout.groups))
        return add_gated(x, gate_2, h.float(), layout.groups)


class DiT(VelocityNetwork):
    """The diffusion transformer on latents of `channels` channels.

    Args:
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes or words.
    """

    def __init__(self, config: DiTConfig, channels: int, embedding_width: int | None = None) -> None:
        super().__init__()
        self.config, self.known_frames = config, config.known_frames
        patch_channels = channels * config.patch_size**2
        self.rope = config.rope
        self.absolute_rope = config.rope.model_copy(update={"axes": None})  # `axes` are channels of a head
        self.patch = nn.Linear(input_channels(channels, config.known_frames) * config.patch_size**2, config.width)
        self.time = TimeEmbedder(config.width)
        self.text = build_encoder(config.text, embedding_width)
        self.text_pooled = nn.Linear(config.text.width, config.width)
        numbers = config.clip_conditions
        self.clip_condition = ClipCondition(numbers, config.width) if numbers else None
        self.jump = JumpCondition(config.width) if config.flow_map else None
        self.caption_tokens = nn.Linear(config.text.width, config.width) if config.joint_blocks else None
        self.joint = BlockStack(
            JointBlock(config, is_last=number == config.joint_blocks - 1) for number in range(config.joint_blocks)
        )
        self.shared_modulation = shared_modulation(config)
        self.blocks = BlockStack(DiTBlock(config, span) for span in config.block_spans)
        self.final_norm = nn.LayerNorm(config.width, elementwise_affine=False)
        # Zero at first: the network predicts zero velocity.
        self.final_modulation = zero(nn.Linear(config.width, 2 * config.width))
        self.final = zero(nn.Linear(config.width, patch_channels))

    def given(self, conditions: Conditions) -> Velocity:
        """As `VelocityNetwork.given`."""
        return partial(self, fps=conditions.fps, known=conditions.known, jump=conditions.jump)

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"],
        caption: Caption,
        fps: Float[Tensor, " clips"] | None = None,
        known: Bool[Tensor, "given 1 t"] | None = None,
        jump: JumpEnd | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Predict the velocity at x_t = `x`, or for a flow map the mean velocity of a jump from there.

        Args:
            t: times in [0, 1], one per sample or one per latent frame.
            fps: frames per second, of each clip or one for all; see `given`.
            known: the latent frames that are given, of each clip or one for all; None: there are none.
            jump: where jumps end; None: the velocity is asked for.

        Raises:
            ValueError: the latent's height or width does not split into patches, or the frame rate is missing.
        """
        plan = self.sequence_plan
        num_frames, height, width = x.shape[2:]
        grid = self.config.token_grid((num_frames, height, width))
        angles = rope_angles(grid, self.config.width // self.config.heads, x.device, self.rope)
        # Rotary angles give relative positions only; absolute ones (a border, the ground) are added to the tokens.
        positions = rope_angles(grid, self.config.width, x.device, self.absolute_rope)
        text = self.text(caption)  # b m e
        pooled = strongest(text, caption.mask)  # b e
        times = t.reshape(len(t), -1)  # b f, where f is 1 or the number of frames
        embedded = self.time(times) + rearrange(self.text_pooled(pooled), "b d -> b 1 d")  # b f d
        if self.clip_condition is not None:
            embedded = embedded + self.clip_condition(fps, (num_frames, height, width), x.device)
        if self.jump is not None:
            embedded = embedded + self.jump(times, jump)
        patches = patchify(self._told(x, known), self.config.patch_size)
        angles, positions, patches = (plan.shard(each, grid[0]) for each in (angles, positions, patches))
        words, keys = None, None
        if self.caption_tokens is not None:
            num_tokens = patches.shape[1]
            words, keys = plan.join_caption(self.caption_tokens(text).float(), caption.mask, num_tokens)
        layout = BatchLayout(num_frames, caption.mask, keys, plan)
        tokens = self._predicted(patches, positions, angles, silu(embedded), text, words, layout)  # b n (c p q)
        return unpatchify(plan.gather(tokens, grid[0]), self.config.patch_size, grid)  # b c t h w

    def packed(
        self, batches: Sequence[NoisyClips], caption: Caption, packing: CaptionPacking
    ) -> list[Float[Tensor, "_ c _ _ _"]]:
        """As `VelocityNetwork.packed`. Raises as `forward`."""
        from models.networks.packed_layout import PackedLayout, PackedPart  # loads torch.compile: more than a second

        p, device = self.config.patch_size, batches[0].x.device
        grids = [(clips, self.config.token_grid(_grid(clips.x))) for clips in batches]
        parts = tuple(PackedPart(len(clips.x), grid, clips.t.numel() // len(clips.x)) for clips, grid in grids)
        layout = PackedLayout.of(parts, packing)
        head_width = self.config.width // self.config.heads
        angles = layout.of_tokens(lambda grid: rope_angles(grid, head_width, device, self.rope))
        positions = layout.of_tokens(lambda grid: rope_angles(grid, self.config.width, device, self.absolute_rope))
        text = self.text(caption, packing)  # 1 m e
        # The maximum over the caption says whether a word occurs, independently of the length of the caption.
        of_clips = rearrange(self.text_pooled(packing.strongest(text)), "clips d -> 1 clips d")
        if self.clip_condition is not None:
            of_clips = of_clips + torch.cat([self._numbers(clips) for clips in batches], dim=1)
        times = torch.cat([clips.t.flatten() for clips in batches])
        embedded = self.time(rearrange(times, "f -> 1 f")) + layout.of_conditions(of_clips)  # 1 f d
        told = (self._told(clips.x, clips.conditions.known) for clips in batches)
        patches = torch.cat([rearrange(patchify(x, p), "b n d -> 1 (b n) d") for x in told], dim=1)
        words = None if self.caption_tokens is None else self.caption_tokens(text).float()  # 1 m d
        tokens = self._predicted(patches, positions, angles, silu(embedded), text, words, layout)  # 1 n (c p q)
        return [
            unpatchify(rearrange(part_tokens, "1 (b n) d -> b n d", b=part.num_clips), p, part.grid)
            for part, part_tokens in layout.parts_of(tokens)
        ]

    def _numbers(self, clips: NoisyClips) -> Float[Tensor, "1 b d"]:
        """What the network is told of each clip by numbers, embedded."""
        assert self.clip_condition is not None
        embedded = self.clip_condition(clips.conditions.fps, _grid(clips.x), clips.x.device)  # b 1 d, or 1 1 d
        return rearrange(embedded.expand(len(clips.x), -1, -1), "b 1 d -> 1 b d")

    def _told(
        self, x: Float[Tensor, "b c t h w"], known: Bool[Tensor, "clips 1 t"] | None
    ) -> Float[Tensor, "b more t h w"]:
        """The latent with the channels that say which frames are given, where the network reads them."""
        return x if self.known_frames == "time" else with_known_channels(x, known)

    def _predicted(
        self,
        patches: Float[Tensor, "b n patch"],
        positions: Float[Tensor, "n half"],
        angles: Float[Tensor, "n half_head"],
        condition: Float[Tensor, "b f d"],
        text: Float[Tensor, "b m e"],
        words: Float[Tensor, "b k d"] | None,
        layout: TokenLayout,
    ) -> Float[Tensor, "b n out"]:
        """The patches of the velocity, from those of x_t and from what their clips are conditioned on."""
        shared = None if self.shared_modulation is None else self.shared_modulation(condition)  # b f (6 d)
        tokens = self.patch(patches) + torch.cat([positions.cos(), positions.sin()], dim=-1)  # b n d
        if words is not None:
            tokens, _ = self.joint.run((tokens, words), condition, shared, angles, layout)
        tokens = self.blocks.run(tokens, condition, shared, text, angles, layout)
        shift, scale = self.final_modulation(condition).float().chunk(2, dim=-1)  # b f d
        return self.final(normed_and_modulated(tokens, self.final_norm, shift, scale, layout.groups))


def _grid(x: Float[Tensor, "b c t h w"]) -> tuple[int, int, int]:
    return x.shape[2], x.shape[3], x.shape[4]
