"""TorchScript files in place of a perceptual network."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Features(nn.Module):
    """Two feature maps of random convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(n 3 h w) to (n 8 h/2 w/2) and (n 12 h/4 w/4)."""
        first = torch.relu(self.first(x))
        return [first, torch.relu(self.second(first))]


class Distance(nn.Module):
    """Ten times the mean squared distance of each pair of images."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Two of (n 3 h w) to (n 1 1 1)."""
        return 10 * (one - other).square().mean((1, 2, 3), keepdim=True)


def save_script(path: Path, network: nn.Module) -> nn.Module:
    """Write a network to a TorchScript file; returns it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network.eval()), path)
    return network


def write_features(path: Path) -> nn.Module:
    """Write `Features` with the weights of seed 0; returns it."""
    torch.manual_seed(0)
    return save_script(path, Features())
