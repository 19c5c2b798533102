"""The DiT with every option at its default, written out once more: what defaults must compute, bit for bit.

An option that is added to `models/networks/dit.py` must leave this file alone.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from models.attention.attention import attention
from models.layers import FeedForward, HeadNorm, RMSNorm, TimeEmbedder
from models.networks.config import DiTConfig
from models.text.bytes import CaptionEncoder
from models.text.caption import Caption

THETA = 100.0


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels for time, height and width."""
    spatial = head_dim * 3 // 8 // 2 * 2
    return head_dim - 2 * spatial, spatial, spatial


def rope_angles(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Rotation angles (n half) of the tokens of a (t, h, w) grid."""
    angles = []
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in grid), indexing="ij")
    for positions, width in zip(axes, axis_widths(head_dim), strict=True):
        frequencies = THETA ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        angles.append(rearrange(positions, "t h w -> (t h w) 1") * frequencies)
    return torch.cat(angles, dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate queries or keys (b n heads d) by the angles of their tokens."""
    cos, sin = (rearrange(part, "n half -> n 1 half").to(x.dtype) for part in (angles.cos(), angles.sin()))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    x = rearrange(x, "b (f s) d -> b f s d", f=shift.shape[1])
    x = torch.addcmul(rearrange(shift, "b f d -> b f 1 d"), x, rearrange(1 + scale, "b f d -> b f 1 d"))
    return rearrange(x, "b f s d -> b (f s) d")


def add_gated(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """x + gate h."""
    x, h = (rearrange(tokens, "b (f s) d -> b f s d", f=gate.shape[1]) for tokens in (x, h))
    return rearrange(torch.addcmul(x, rearrange(gate, "b f d -> b f 1 d"), h), "b f s d -> b (f s) d")


class PlainBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.qk_norm = HeadNorm(2 * config.heads)
        self.out = nn.Linear(width, width, bias=False)
        self.cross_norm = RMSNorm(width)
        self.cross_query = nn.Linear(width, width, bias=False)
        self.cross_key_value = nn.Linear(config.text.width, 2 * width, bias=False)
        self.cross_query_norm, self.cross_key_norm = HeadNorm(config.heads), HeadNorm(config.heads)
        self.cross_out = nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, config.mlp_ratio)
        self.modulation = nn.Linear(width, 6 * width)
        for parameter in (self.modulation.weight, self.modulation.bias, self.cross_out.weight):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor, text_mask: Tensor, angles: Tensor) -> Tensor:
        """Refine the tokens (b n d)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(condition).float().chunk(6, dim=-1)

        h = modulate(self.norm(x), shift_1, scale_1)
        q_k, v = rearrange(self.qkv(h), "b n (h d) -> b n h d", h=3 * self.heads).tensor_split([2 * self.heads], dim=2)
        q, k = rotate(self.qk_norm(q_k), angles).chunk(2, dim=2)
        h = self.out(rearrange(attention(q, k, v), "b n heads d -> b n (heads d)"))
        x = add_gated(x, gate_1, h.float())

        q = self.cross_query_norm(rearrange(self.cross_query(self.cross_norm(x)), "b n (h d) -> b n h d", h=self.heads))
        k, v = rearrange(self.cross_key_value(text), "b m (two h d) -> two b m h d", two=2, h=self.heads)
        h = attention(q, self.cross_key_norm(k), v, text_mask)
        x = x + self.cross_out(rearrange(h, "b n h d -> b n (h d)"))

        h = self.feed_forward(modulate(self.norm(x), shift_2, scale_2))
        return add_gated(x, gate_2, h.float())


class PlainDiT(nn.Module):
    """The network, on latents of `channels` channels and captions of bytes."""

    def __init__(self, config: DiTConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        patch_channels = channels * config.patch_size**2
        self.patch = nn.Linear(patch_channels, config.width)
        self.time = TimeEmbedder(config.width)
        self.text = CaptionEncoder(config.text)
        self.text_pooled = nn.Linear(config.text.width, config.width)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.final_modulation = nn.Linear(config.width, 2 * config.width)
        self.final = nn.Linear(config.width, patch_channels)
        for layer in (self.final_modulation, self.final):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, caption: Caption) -> Tensor:
        """The velocity at (b c t h w) latents, of times (b) or (b 1 t)."""
        p = self.config.patch_size
        grid = x.shape[2], x.shape[3] // p, x.shape[4] // p
        angles = rope_angles(grid, self.config.width // self.config.heads)
        positions = rope_angles(grid, self.config.width)
        text = self.text(caption)
        pooled = text.float().masked_fill(~caption.mask[..., None], float("-inf")).amax(1)
        condition = silu(self.time(t.reshape(len(t), -1)) + rearrange(self.text_pooled(pooled), "b d -> b 1 d"))
        patches = rearrange(x, "b c t (h p) (w q) -> b (t h w) (c p q)", p=p, q=p)
        tokens = self.patch(patches) + torch.cat([positions.cos(), positions.sin()], dim=-1)
        for block in self.blocks:
            tokens = block(tokens, condition, text, caption.mask, angles)
        shift, scale = self.final_modulation(condition).float().chunk(2, dim=-1)
        tokens = self.final(modulate(self.final_norm(tokens), shift, scale))
        frames, height, width = grid
        layout = "b (t h w) (c p q) -> b c t (h p) (w q)"
        return rearrange(tokens, layout, t=frames, h=height, w=width, p=p, q=p)
