"""The video U-Net: a convolutional velocity network (Ronneberger et al. 2015; Holderrieth & Erives 2025, "U-Nets").

Encoders halve height and width and widen the channels, level by level; a midcoder works at the deepest level, on few
positions that know much; decoders lead back up, each with the output of the encoder of its level beside its own input.
Time keeps its length. A convolution over space and time is factorised into one over space and one over time
(Tran et al. 2018, section 3.5; Ho et al. 2022, "Video Diffusion Models", section 3). Neither is causal: the velocity of
a frame may depend on later ones. Both pad with zeros, from which the network can tell where a border is.

The time and the whole caption shift, scale and gate the layers by adaLN-zero, as in the DiT (`models/networks/dit.py`).
At the deepest level every position also attends to every other in space and time, and to the caption.

The blocks of a level are equal, and each level has one skip connection, so they are a `BlockStack` for each level on
each way: every block can be recomputed, and is compiled once for all blocks of its level, down and up.
"""

from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.attention.attention import attention
from models.layers import BlockStack, ChannelNorm, HeadNorm, RMSNorm, TimeEmbedder
from models.networks.config import UNetConfig
from models.networks.known_frames import input_channels, with_known_channels
from models.networks.modulation import add_gated, normed_and_modulated
from models.networks.protocol import Conditions, Velocity, VelocityNetwork
from models.networks.rope import rope_angles, rotate
from models.text.caption import Caption, strongest
from models.text.encoder import build_encoder

HALF = (1, 2, 2)  # kernel and stride (t, h, w) of the changes of level


def convolution(channels_in: int, channels_out: int) -> nn.Conv3d:
    """A convolution over height and width, of 3 x 3 positions, with zeros around the frame."""
    return nn.Conv3d(channels_in, channels_out, (1, 3, 3), padding=(0, 1, 1))


class ConvolutionBlock(nn.Module):
    """x + gate conv_time(silu(norm(conv_space(silu(norm(x) (1 + scale) + shift))))).

    Norms are over the channels of each position, so that only the convolution over time brings frames together.

    Args:
        width: channels.
        condition_width: channels of the condition.
    """

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = ChannelNorm(width), ChannelNorm(width)
        self.conv_space = convolution(width, width)
        # Over (t, h w): the gradient of torch 2.13's Conv3d is wrong for two frames in bfloat16 on a CPU.
        self.conv_time = nn.Conv2d(width, width, (3, 1), padding=(1, 0))
        self.modulation = nn.Linear(condition_width, 3 * width)
        for parameter in self.modulation.parameters():  # zero at first: the block is the identity
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b c t h w"], condition: Float[Tensor, "b f d"]) -> Float[Tensor, "b c t h w"]:
        """Refine the latent.

        Args:
            condition: silu of the embedded time and caption, one per sample (f = 1) or per latent frame.
        """
        parts = rearrange(self.modulation(condition).float(), "b f (three c) -> three b c f 1 1", three=3)
        shift, scale, gate = parts.unbind(0)
        h = self.conv_space(silu(torch.addcmul(shift, self.norm_1(x), 1 + scale)))  # b c t h w
        h = self.conv_time(rearrange(silu(self.norm_2(h)), "b c t h w -> b c t (h w)"))  # b c t h*w
        return torch.addcmul(x, gate, rearrange(h.float(), "b c t (h w) -> b c t h w", h=x.shape[3]))


class MidBlock(nn.Module):
    """A `ConvolutionBlock`, self-attention, and cross-attention to the caption, at the deepest level."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width, text_width, self.heads = config.widths[-1], config.text.width, config.heads
        self.convolution = ConvolutionBlock(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # the condition gives scale and shift
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # the shift before it acts as a bias
        self.qk_norm = HeadNorm(2 * config.heads)
        self.out = nn.Linear(width, width, bias=False)
        self.cross_norm = RMSNorm(width)
        self.cross_query = nn.Linear(width, width, bias=False)
        self.cross_key_value = nn.Linear(text_width, 2 * width, bias=False)
        self.cross_query_norm, self.cross_key_norm = HeadNorm(config.heads), HeadNorm(config.heads)
        self.cross_out = nn.Linear(width, width, bias=False)
        self.modulation = nn.Linear(width, 3 * width)
        # Zero at first, as the convolutions: every block is the identity.
        for parameter in (self.modulation.weight, self.modulation.bias, self.cross_out.weight):
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "b d t h w"],
        condition: Float[Tensor, "b f d"],
        text: Float[Tensor, "b m e"],
        text_mask: Bool[Tensor, "b m"],
        angles: Float[Tensor, "n half"],
    ) -> Float[Tensor, "b d t h w"]:
        """Refine the latent.

        Args:
            condition: as of a `ConvolutionBlock`.
            text: encoded caption, for cross-attention.
            angles: rotation angles of each position, see `rope_angles`.
        """
        _, _, frames, height, _ = x.shape
        x = rearrange(self.convolution(x, condition), "b d t h w -> b (t h w) d")  # b n d

        shift, scale, gate = self.modulation(condition).float().chunk(3, dim=-1)
        qkv = self.qkv(normed_and_modulated(x, self.norm, shift, scale))  # b n 3d
        q_k, v = self._heads(qkv, 3 * self.heads).split([2 * self.heads, self.heads], dim=2)
        q, k = rotate(self.qk_norm(q_k), angles).chunk(2, dim=2)  # b n heads c
        h = self.out(rearrange(attention(q, k, v), "b n heads c -> b n (heads c)"))
        x = add_gated(x, gate, h.float())

        q = self.cross_query_norm(self._heads(self.cross_query(self.cross_norm(x)), self.heads))
        k, v = self._heads(self.cross_key_value(text), 2 * self.heads).chunk(2, dim=2)  # b m heads c
        h = attention(q, self.cross_key_norm(k), v, text_mask)
        x = x + self.cross_out(rearrange(h, "b n heads c -> b n (heads c)"))
        return rearrange(x, "b (t h w) d -> b d t h w", t=frames, h=height)

    @staticmethod
    def _heads(x: Float[Tensor, "b n d"], heads: int) -> Float[Tensor, "b n heads c"]:
        return rearrange(x, "b n (heads c) -> b n heads c", heads=heads)


class UNet(VelocityNetwork):
    """The U-Net on latents of `channels` channels.

    `blocks` are those of the midcoder, which have the attention; encoders and decoders have stacks of their own.
    Low-rank adapters go on its linear layers, as on those of any network, and not on its convolutions.

    Args:
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes or words.
    """

    def __init__(self, config: UNetConfig, channels: int, embedding_width: int | None = None) -> None:
        super().__init__()
        self.config, self.known_frames = config, config.known_frames
        self.head_dim = config.widths[-1] // config.heads
        *widths, deepest = config.widths

        def blocks(width: int) -> BlockStack:
            return BlockStack(ConvolutionBlock(width, deepest) for _ in range(config.num_blocks))

        levels = list(zip(widths, config.widths[1:], strict=True))  # channels of each level and of the one below
        self.time = TimeEmbedder(deepest)
        self.text = build_encoder(config.text, embedding_width)
        self.text_pooled = nn.Linear(config.text.width, deepest)
        self.conv_in = convolution(input_channels(channels, config.known_frames), config.width)
        self.encoders = nn.ModuleList(blocks(width) for width in widths)
        self.downsample = nn.ModuleList(nn.Conv3d(width, below, HALF, HALF) for width, below in levels)
        self.blocks = BlockStack(MidBlock(config) for _ in range(config.num_blocks))
        self.upsample = nn.ModuleList(nn.ConvTranspose3d(below, width, HALF, HALF) for width, below in levels)
        self.merge = nn.ModuleList(nn.Conv3d(2 * width, width, 1) for width in widths)
        self.decoders = nn.ModuleList(blocks(width) for width in widths)
        self.final_norm = ChannelNorm(config.width)
        self.final_modulation = nn.Linear(deepest, 2 * config.width)
        self.conv_out = convolution(config.width, channels)
        for layer in (self.final_modulation, self.conv_out):  # zero velocity at first
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def given(self, conditions: Conditions) -> Velocity:
        """As `VelocityNetwork.given`."""
        return partial(self, known=conditions.known)

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"],
        caption: Caption,
        known: Bool[Tensor, "given 1 t"] | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Predict the velocity at x_t = `x`.

        Args:
            t: times in [0, 1], one per sample or one per latent frame.
            known: the latent frames that are given, of each clip or one for all; None: there are none.

        Raises:
            ValueError: the latent's height or width cannot be halved at every level.
        """
        grid = self.config.token_grid((x.shape[2], x.shape[3], x.shape[4]))  # of the deepest level
        angles = rope_angles(grid, self.head_dim, x.device)
        text = self.text(caption)  # b m e
        pooled = strongest(text, caption.mask)  # b e
        times = t.reshape(len(t), -1)  # b f, where f is 1 or the number of frames
        condition = silu(self.time(times) + rearrange(self.text_pooled(pooled), "b d -> b 1 d"))  # b f d

        # On level i, with d_0 = width:
        told = x if self.known_frames == "time" else with_known_channels(x, known)
        h = self.conv_in(told).float()  # b d_0 t h w
        skips: list[Tensor] = []
        for encoder, downsample in zip(self.encoders, self.downsample, strict=True):
            h = _run(encoder, h, condition)  # b d_i t h/2^i w/2^i
            skips.append(h)
            h = downsample(h).float()  # b d_i+1 t h/2^(i+1) w/2^(i+1)
        h = self.blocks.run(h, condition, text, caption.mask, angles)  # the same
        ways_up = list(zip(self.upsample, self.merge, self.decoders, skips, strict=True))
        for upsample, merge, decoder, skip in reversed(ways_up):
            h = merge(torch.cat([upsample(h).float(), skip], dim=1)).float()  # b d_i t h/2^i w/2^i
            h = _run(decoder, h, condition)  # the same
        parts = rearrange(self.final_modulation(condition).float(), "b f (two c) -> two b c f 1 1", two=2)
        shift, scale = parts.unbind(0)  # b d_0 f 1 1
        return self.conv_out(silu(torch.addcmul(shift, self.final_norm(h), 1 + scale)))  # b c t h w


def _run(stack: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    assert isinstance(stack, BlockStack)
    return stack.run(x, condition)
