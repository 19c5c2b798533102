"""A network that predicts tokens, made of one that predicts velocities.

Tokens at a latent position are embedded and added up, which makes a latent of as many channels as embeddings have. The
network maps it to another one at the same time and caption, and a linear layer at each position gives the logits.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.layers import Embedding
from models.networks.protocol import Conditions, Velocity, VelocityNetwork
from models.text.caption import Caption
from models.tokens.config import TokenizerConfig

EMBEDDING_CHANNELS = 64
"""Of the tokens at a latent position together, and of the features that their logits are read from."""


class TokenNetwork(nn.Module):
    """Logits of the tokens of the data at every place, from tokens of which some are masked.

    Args:
        network: on latents of `channels` channels.
    """

    def __init__(self, network: VelocityNetwork, channels: int, tokens: TokenizerConfig) -> None:
        super().__init__()
        self.network, self.tokens = network, tokens
        self.embedding = Embedding(tokens.codes * (tokens.num_tokens + 1), channels)  # of each code, and of its mask
        self.head = nn.Linear(channels, tokens.codes * tokens.num_tokens)

    def given(self, conditions: Conditions) -> Velocity:
        """The logits under these conditions, as `forward`."""
        network = self.network.given(conditions)
        return lambda x, t, caption: self._logits(network(self._embedded(x), t, caption))

    def forward(
        self, x: Int[Tensor, "b g t h w"], t: Float[Tensor, " b"], caption: Caption
    ) -> Float[Tensor, "b g t h w k"]:
        """Logits of the `tokens.num_tokens` tokens of the data.

        Args:
            x: tokens at time `t`; the mask is the token after the last one of the data.
        """
        return self._logits(self.network(self._embedded(x), t, caption))

    def _embedded(self, x: Int[Tensor, "b g t h w"]) -> Float[Tensor, "b c t h w"]:
        first = torch.arange(self.tokens.codes, device=x.device) * (self.tokens.num_tokens + 1)
        numbers = x + rearrange(first, "g -> g 1 1 1")
        embedded = self.embedding(numbers).sum(1) / self.tokens.codes**0.5
        return rearrange(embedded, "b t h w c -> b c t h w")

    def _logits(self, features: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b g t h w k"]:
        logits = self.head(rearrange(features, "b c t h w -> b t h w c"))
        return rearrange(logits, "b t h w (g k) -> b g t h w k", g=self.tokens.codes).float()
