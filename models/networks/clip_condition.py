"""Numbers of a clip that the network is told beside time and caption: its frame rate, and its size.

Each is embedded like the time and added to it, as sizes are in Podell et al. 2023 (SDXL, section 2.2). The embeddings
are zero at first.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from models.layers import TimeEmbedder
from models.networks.dit_options import ClipNumber
from models.networks.modulation import zero

LARGEST = 12  # numbers up to 2^12 are embedded as log2(number) / 12, in the range of times


class ClipCondition(nn.Module):
    """The sum of the embedded numbers.

    Args:
        numbers: `fps`, or `size`, which is three: latent frames, height and width.
    """

    def __init__(self, numbers: tuple[ClipNumber, ...], width: int) -> None:
        super().__init__()
        self.fps = _embedder(width) if "fps" in numbers else None
        self.size = nn.ModuleList(_embedder(width) for _ in range(3)) if "size" in numbers else None

    def forward(
        self, fps: Float[Tensor, " clips"] | None, latent_grid: tuple[int, int, int], device: torch.device
    ) -> Float[Tensor, "_ 1 d"]:
        """Embed; one vector for each frame rate, or one for all clips where the network reads none.

        Args:
            fps: frames per second of each clip, or one for all.

        Raises:
            ValueError: the network reads frame rates, and there are none.
        """
        parts = []
        if self.fps is not None:
            if fps is None:
                raise ValueError(
                    "the network reads frame rates: call network.given(Conditions(fps)) instead of network"
                )
            parts.append(self.fps(_scaled(fps.to(device))))
        if self.size is not None:
            numbers = torch.tensor(latent_grid, dtype=torch.float32, device=device)
            parts += [embed(_scaled(number)) for embed, number in zip(self.size, numbers.split(1), strict=True)]
        return rearrange(sum(parts[1:], parts[0]), "b d -> b 1 d")


def _scaled(number: Float[Tensor, " clips"]) -> Float[Tensor, " clips"]:
    return number.float().log2() / LARGEST


def _embedder(width: int) -> TimeEmbedder:
    embedder = TimeEmbedder(width)
    zero(embedder.second)
    return embedder
