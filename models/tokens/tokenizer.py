"""A small network that turns normalised latents into tokens and back: convolutions in space around rounded codes.

Frames are treated alone, so clips of any length and images have tokens, and a frame's do not change with what follows.
"""

from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import silu

from models.layers import ChannelNorm
from models.tokens.config import TokenizerConfig
from models.tokens.fsq import codes_of, quantized, tokens_of


class FrameBlock(nn.Module):
    """A residual block: a 3 x 3 convolution of each frame, then a linear layer at each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.convolution = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.out = nn.Conv3d(width, width, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Refine the features."""
        return x + self.out(silu(self.convolution(silu(self.norm(x)))))


def _projection(channels_in: int, channels_out: int, config: TokenizerConfig) -> nn.Sequential:
    """Channels to others, by residual blocks between two linear layers, or by one linear layer without blocks."""
    if config.depth == 0:
        return nn.Sequential(nn.Conv3d(channels_in, channels_out, 1))
    blocks = (FrameBlock(config.width) for _ in range(config.depth))
    return nn.Sequential(nn.Conv3d(channels_in, config.width, 1), *blocks, nn.Conv3d(config.width, channels_out, 1))


class Tokenizer(nn.Module):
    """Tokens of normalised latents of `channels` channels: `config.codes` of them at each latent position."""

    def __init__(self, config: TokenizerConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        code_channels = config.codes * len(config.levels)
        self.before = _projection(channels, code_channels, config)
        self.after = _projection(code_channels, channels, config)

    def forward(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The latents rebuilt from their codes, through which gradients pass."""
        return self._rebuilt(self._codes(latents))

    def encode(self, latents: Float[Tensor, "b c t h w"]) -> Int[Tensor, "b g t h w"]:
        """Tokens between 0 and `config.num_tokens` - 1, `config.codes` at each position."""
        return tokens_of(self._codes(latents), self.config.levels)

    def decode(self, tokens: Int[Tensor, "b g t h w"]) -> Float[Tensor, "b c t h w"]:
        """The normalised latents that tokens stand for."""
        return self._rebuilt(codes_of(tokens, self.config.levels))

    def _codes(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b g t h w d"]:
        z = rearrange(self.before(latents).float(), "b (g d) t h w -> b g t h w d", g=self.config.codes)
        return quantized(z, self.config.levels)

    def _rebuilt(self, codes: Float[Tensor, "b g t h w d"]) -> Float[Tensor, "b c t h w"]:
        return self.after(rearrange(codes, "b g t h w d -> b (g d) t h w")).float()
