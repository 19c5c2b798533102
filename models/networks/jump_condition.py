"""Where a jump of a flow map ends, and at which guidance scale, told to a network beside the time it begins at.

Both are embedded like the time and added to it. The embeddings are zero at first, so that a network with the weights of
a trained one predicts the velocity of that one whatever it is told.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import TimeEmbedder
from models.networks.modulation import zero
from models.networks.protocol import JumpEnd

LARGEST = 4  # scales up to 2^4 are embedded as log2(scale) / 4, in the range of times


class JumpCondition(nn.Module):
    """The sum of the embedded length in time and guidance scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.length, self.guidance = TimeEmbedder(width), TimeEmbedder(width)
        zero(self.length.second)
        zero(self.guidance.second)

    def forward(self, times: Float[Tensor, "b f"], end: JumpEnd | None) -> Float[Tensor, "b f d"]:
        """Embed.

        Args:
            times: at which jumps begin, one per sample or per latent frame.
            end: None: at the same times, without guidance, where the network is the velocity.
        """
        if end is None:
            lengths, scales = torch.zeros_like(times), times.new_ones(1)
        else:
            lengths, scales = end.times.reshape(len(end.times), -1).to(times) - times, end.guidance.to(times)
        return self.length(lengths) + self.guidance(scales.log2() / LARGEST)[:, None]
