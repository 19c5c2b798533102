"""How the condition (time and caption) shifts, scales and gates the layers of blocks, and at what cost.

With d channels, a block needs six vectors of d: shift, scale and gate for each of two layers. They come from

- `per_block`: a linear layer in each block, adaLN-zero (Peebles & Xie 2022, section 3.2): 6 d^2 parameters a block;
- `shared`: one linear layer for all blocks plus a table in each, adaLN-single (Chen et al. 2023, PixArt-alpha, section
  2.3): 6 d^2 parameters in all, and 6 d a block;
- `low_rank`: the same plus a product of rank r in each block, adaLN-LoRA (Gupta et al. 2023, W.A.L.T, section 3.3):
  7 r d parameters a block more.

All are zero at first, so that every block is the identity.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.networks.config import DiTConfig
from models.norms import modulated_layer_norm


class BlockModulation(nn.Module):
    """What a block adds to the shared vectors: a table, and with `rank` a low-rank function of the condition."""

    def __init__(self, width: int, num_vectors: int, rank: int | None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_vectors * width))
        self.reduce = None if rank is None else nn.Linear(width, rank, bias=False)
        self.expand = None if rank is None else zero(nn.Linear(rank, num_vectors * width, bias=False))

    def forward(self, condition: Float[Tensor, "b f d"], shared: Float[Tensor, "b f k"]) -> Float[Tensor, "b f v"]:
        """This block's vectors, from the first of the shared ones."""
        own = shared[..., : len(self.table)].float() + self.table
        if self.reduce is None or self.expand is None:
            return own
        return own + self.expand(self.reduce(condition)).float()


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer, with its weights and biases set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def shared_modulation(config: DiTConfig) -> nn.Linear | None:
    """The layer that makes the vectors of all blocks from the condition; None if each block has its own."""
    return None if config.modulation == "per_block" else zero(nn.Linear(config.width, 6 * config.width))


def block_modulation(config: DiTConfig, num_vectors: int = 6) -> nn.Module:
    """A block's own part, for `modulation_vectors`."""
    if config.modulation == "per_block":
        return zero(nn.Linear(config.width, num_vectors * config.width))
    return BlockModulation(config.width, num_vectors, config.modulation_rank)


def modulation_vectors(
    layer: nn.Module, condition: Float[Tensor, "b f d"], shared: Float[Tensor, "b f k"] | None, num_vectors: int = 6
) -> tuple[Float[Tensor, "b f d"], ...]:
    """The vectors of a block: shift, scale and gate of its first layer, then of its second one.

    Args:
        layer: what `block_modulation` made.
        shared: what the layer of `shared_modulation` makes of the condition.
    """
    vectors = layer(condition) if shared is None else layer(condition, shared)
    return vectors.float().chunk(num_vectors, dim=-1)


Groups = tuple[tuple[int, int], ...]
"""Of packed clips of several shapes: (vectors, tokens) of each group, whose vectors have equally many tokens."""


def normed_and_modulated(
    x: Float[Tensor, "b n d"],
    norm: nn.LayerNorm,
    shift: Float[Tensor, "b f d"],
    scale: Float[Tensor, "b f d"],
    groups: Groups | None = None,
) -> Float[Tensor, "b n d"]:
    """norm(x) (1 + scale) + shift, with one shift and scale per sample (f = 1) or per frame; all in float32.

    Args:
        norm: without weights.
        groups: of packed clips; None: each vector has equally many tokens.
    """
    if groups is not None:
        num_vectors, num_tokens = zip(*groups, strict=True)
        parts = zip(x.split(num_tokens, 1), shift.split(num_vectors, 1), scale.split(num_vectors, 1), strict=True)
        return torch.cat([normed_and_modulated(tokens, norm, own, factor) for tokens, own, factor in parts], dim=1)
    # Not by calling the module: its hooks under ZeRO 3 have nothing to gather.
    tokens = rearrange(x, "b (f s) d -> b f s d", f=shift.shape[1])
    return rearrange(modulated_layer_norm(tokens, shift, scale, norm.eps), "b f s d -> b (f s) d")


def add_gated(
    x: Float[Tensor, "b n d"], gate: Float[Tensor, "b f d"], h: Float[Tensor, "b n d"], groups: Groups | None = None
) -> Float[Tensor, "b n d"]:
    """x + gate h, with one gate per sample (f = 1) or per frame; `groups` as in `normed_and_modulated`."""
    if groups is not None:
        num_vectors, num_tokens = zip(*groups, strict=True)
        parts = zip(x.split(num_tokens, 1), gate.split(num_vectors, 1), h.split(num_tokens, 1), strict=True)
        return torch.cat([add_gated(*part) for part in parts], dim=1)
    x, h = (rearrange(tokens, "b (f s) d -> b f s d", f=gate.shape[1]) for tokens in (x, h))
    return rearrange(torch.addcmul(x, rearrange(gate, "b f d -> b f 1 d"), h), "b f s d -> b (f s) d")
