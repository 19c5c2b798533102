"""The transformer of Wan 2.1 and Wan 2.2 (Wan team 2025, arXiv 2503.20314, section 4.2), for published weights.

It differs from our DiT (`models/networks/dit.py`) in this: all linear layers have biases; queries and keys are
normalised over all heads together; rotary embedding turns neighbouring channels; one modulation for all blocks is
added to a table of each block; every token attends to a fixed number of text tokens, padding included.

All conventions of the published weights are translated here, and nowhere else: their time is 1000 (1 - t), and their
velocity points from data to noise.
"""

from functools import lru_cache, partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, silu

from models.attention.attention import attention
from models.layers import BlockStack, LayerNorm, RMSNorm
from models.networks.config import WanConfig
from models.networks.dit import patchify
from models.networks.known_frames import for_batch
from models.networks.modulation import add_gated, normed_and_modulated
from models.networks.protocol import Conditions, ImageCondition, SequenceParallelPlan, Velocity, VelocityNetwork
from models.recompute import gelu_linear
from models.text.caption import Caption
from models.text.embeddings import CaptionEmbeddings

THETA = 10_000.0  # of the rotary embedding, and ratio of the slowest to the fastest sinusoid of a time
TIME_SCALE = 1000.0  # the published networks count time from 0 (data) to 1000 (noise)


def time_sinusoids(t: Float[Tensor, "b f"], width: int) -> Float[Tensor, "b f d"]:
    """[cos(w s), sin(w s)] of the published time s = 1000 (1 - t), with w from 1 down to almost 1 / 10000."""
    frequencies = THETA ** -(torch.arange(width // 2, dtype=torch.float32, device=t.device) / (width // 2))
    phases = (TIME_SCALE * (1 - t.float()))[..., None] * frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # cached values must work in training too, even if sampling computed them
def rotations(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Float[Tensor, "n d"]:
    """For every token of a (t, h, w) grid in token order: cosines of the angles of all channel pairs, then the sines.

    A third of the pairs turn with each axis, those that are left over with time. The result is cached, so do not write
    into it.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in grid), indexing="ij")
    for positions, width in zip(axes, (head_dim - 2 * spatial, spatial, spatial), strict=True):
        frequencies = THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(rearrange(positions, "t h w -> (t h w) 1") * frequencies)
    each = torch.cat(angles, dim=-1)
    return torch.cat([each.cos(), each.sin()], dim=-1).float().to(device)


def rotate_pairs(x: Float[Tensor, "b n heads d"], rotation: Float[Tensor, "n d"]) -> Float[Tensor, "b n heads d"]:
    """Rotate queries or keys by their token's angles, see `rotations`; channel 2 i is paired with channel 2 i + 1."""
    cos, sin = rearrange(rotation.to(x.dtype), "n (part half) -> part n 1 half", part=2)
    first, second = rearrange(x, "b n heads (half pair) -> pair b n heads half", pair=2)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rearrange(turned, "b n heads half pair -> b n heads (half pair)")


class TwoLayers(nn.Module):
    """Linear, silu or approximate GELU, linear: the time and the text on their way into the blocks."""

    def __init__(self, width_in: int, width: int, *, uses_gelu: bool) -> None:
        super().__init__()
        self.first = nn.Linear(width_in, width)
        self.second = nn.Linear(width, width)
        self.uses_gelu = uses_gelu

    def forward(self, x: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch d"]:
        """Apply to every vector."""
        h = self.first(x)
        return self.second(gelu(h, approximate="tanh") if self.uses_gelu else silu(h))


class ImageEmbedder(nn.Module):
    """An image encoder's tokens to the width of the network: norm, linear, GELU, linear, norm."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm_in = LayerNorm(width_in)
        self.first = nn.Linear(width_in, width_in)
        self.second = nn.Linear(width_in, width)
        self.norm_out = LayerNorm(width)

    def forward(self, image: Float[Tensor, "b k e"]) -> Float[Tensor, "b k d"]:
        """Embed."""
        return self.norm_out(self.second(gelu(self.first(self.norm_in(image)))))


class WanBlock(nn.Module):
    """Self-attention, cross-attention to caption and image, feed-forward; the time gates the first and the last."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        width, eps, self.heads = config.width, config.norm_eps, config.heads
        self.modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 6, width), std=width**-0.5))
        self.norm = nn.LayerNorm(width, eps, elementwise_affine=False)  # the time gives scale and shift
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.out = nn.Linear(width, width)
        self.cross_norm = LayerNorm(width, eps)
        self.cross_query = nn.Linear(width, width)
        self.cross_key_value = nn.Linear(width, 2 * width)
        self.cross_query_norm, self.cross_key_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        if config.image_width is not None:
            self.image_key_value = nn.Linear(width, 2 * width)
            self.image_key_norm = RMSNorm(width, eps)
        self.cross_out = nn.Linear(width, width)
        self.up = nn.Linear(width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, width)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        time: Float[Tensor, "b f six d"],
        text: Float[Tensor, "b m d"],
        image: Float[Tensor, "b k d"] | None,
        rotation: Float[Tensor, "n c"],
        plan: SequenceParallelPlan,
    ) -> Float[Tensor, "b n d"]:
        """Refine the tokens.

        Args:
            time: shift, scale and gate of the two gated layers, one per sample (f = 1) or per latent frame.
            text: the caption's embeddings, of the width of the network.
            image: embeddings of the first frame, of the width of the network; None: there are none.
            rotation: of each token, see `rotations`.
            plan: how the tokens are shared among processes.
        """
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (time + self.modulation.float()).unbind(2)

        q, k, v = self.qkv(normed_and_modulated(x, self.norm, shift_1, scale_1)).chunk(3, dim=-1)
        q, k, v = (self._heads(part) for part in (self.query_norm(q), self.key_norm(k), v))
        h = plan.attention(rotate_pairs(q, rotation), rotate_pairs(k, rotation), v)
        x = add_gated(x, gate_1, self.out(rearrange(h, "b n heads d -> b n (heads d)")).float())

        q = self._heads(self.cross_query_norm(self.cross_query(self.cross_norm(x))))
        k, v = self.cross_key_value(text).chunk(2, dim=-1)
        h = attention(q, self._heads(self.cross_key_norm(k)), self._heads(v))
        if image is not None:
            k, v = self.image_key_value(image).chunk(2, dim=-1)
            h = h + attention(q, self._heads(self.image_key_norm(k)), self._heads(v))
        x = x + self.cross_out(rearrange(h, "b n heads d -> b n (heads d)"))

        h = gelu_linear(self.up(normed_and_modulated(x, self.norm, shift_2, scale_2)), self.down, "tanh")
        return add_gated(x, gate_2, h.float())

    def _heads(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n heads c"]:
        return rearrange(x, "b n (heads c) -> b n heads c", heads=self.heads)


class Wan(VelocityNetwork):
    """The transformer of Wan on latents of `channels` channels.

    Args:
        embedding_width: channels of the text encoder's embeddings.
    """

    def __init__(self, config: WanConfig, channels: int, embedding_width: int) -> None:
        super().__init__()
        self.config, self.time_width, self.text_tokens = config, config.time_width, config.text_tokens
        width, patch_area = config.width, config.patch_size**2
        self.patch = nn.Linear((channels + config.condition_channels) * patch_area, width)
        self.time = TwoLayers(config.time_width, width, uses_gelu=False)
        self.time_modulation = nn.Linear(width, 6 * width)
        self.text = TwoLayers(embedding_width, width, uses_gelu=True)
        self.image = None if config.image_width is None else ImageEmbedder(config.image_width, width)
        self.blocks = BlockStack(WanBlock(config) for _ in range(config.depth))
        self.final_modulation = nn.Parameter(nn.init.normal_(torch.empty(1, 2, width), std=width**-0.5))
        self.final_norm = nn.LayerNorm(width, config.norm_eps, elementwise_affine=False)
        self.final = nn.Linear(width, channels * patch_area)
        for parameter in self.final.parameters():  # without published weights, the velocity is zero at first
            nn.init.zeros_(parameter)

    def given(self, conditions: Conditions) -> Velocity:
        """As `VelocityNetwork.given`."""
        return self if conditions.image is None else partial(self._from_image, conditions.image)

    def _from_image(
        self, image: ImageCondition, x: Float[Tensor, "b c t h w"], t: Tensor, caption: Caption
    ) -> Float[Tensor, "b c t h w"]:
        """The velocity of clips that start from an image, by the channels and the attention that the network has."""
        embedding = None if image.embedding is None else for_batch(image.embedding, len(x))
        return self(torch.cat([x, for_batch(image.channels, len(x))], dim=1), t, caption, embedding)

    def forward(
        self,
        x: Float[Tensor, "b c t h w"],
        t: Float[Tensor, " b"] | Float[Tensor, "b 1 t"],
        caption: Caption,
        image: Float[Tensor, "b k i"] | None = None,
    ) -> Float[Tensor, "b latent t h w"]:
        """Predict the velocity at x_t.

        Args:
            x: x_t, followed by the `condition_channels`.
            t: times in [0, 1], one per sample or one per latent frame.
            image: an image encoder's embeddings of the first frame, for networks with `image_width`.

        Raises:
            ValueError: the latent's height or width does not split into patches; the caption has more tokens than the
                network takes; the image is missing, or is not taken.
            TypeError: the caption is not an embedding.
        """
        p, frames = self.config.patch_size, x.shape[2]
        grid = self.config.token_grid((frames, x.shape[3], x.shape[4]))
        text = self.text(self._text(caption))  # b m d
        if (image is None) != (self.image is None):
            raise ValueError(f"the network takes {'no' if self.image is None else 'an'} image beside the caption")
        embedded = None if image is None or self.image is None else self.image(image)  # b k d
        times = self.time(time_sinusoids(t.reshape(len(t), -1), self.time_width)).float()  # b f d
        modulation = rearrange(self.time_modulation(silu(times)).float(), "b f (six d) -> b f six d", six=6)
        rotation, patches = rotations(grid, self.config.width // self.config.heads, x.device), patchify(x, p)
        plan = self.sequence_plan
        rotation, patches = (plan.shard(each, frames) for each in (rotation, patches))
        tokens = self.blocks.run(self.patch(patches).float(), modulation, text, embedded, rotation, plan)  # b n d
        shift, scale = (rearrange(times, "b f d -> b f 1 d") + self.final_modulation.float()).unbind(2)  # b f d
        tokens = plan.gather(
            self.final(normed_and_modulated(tokens, self.final_norm, shift, scale)), frames
        )  # b n (p q c)
        _, h, w = grid
        published = rearrange(tokens, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=h, w=w, p=p, q=p)
        return -published  # theirs is noise - data

    def _text(self, caption: Caption) -> Float[Tensor, "b m e"]:
        """The embeddings, filled up with zeros: the network was trained to attend to padding."""
        if not isinstance(caption, CaptionEmbeddings):
            raise TypeError("a network of architecture wan reads captions as embeddings, not as bytes")
        missing = self.text_tokens - caption.values.shape[1]
        if missing < 0:
            raise ValueError(
                f"captions of {caption.values.shape[1]} tokens do not fit the {self.text_tokens} of the network"
            )
        return pad(caption.values, (0, 0, 0, missing))
