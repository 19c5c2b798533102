"""Small networks of Wan by diffusers with random weights, and ours with the same weights."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.autoencoder.wan import WanAutoencoder
from models.autoencoder.wan_published import published_names, read_published_config
from models.networks.build import build_network
from models.networks.wan import Wan
from models.networks.wan_published import PublishedTransformer, published_tensors, read_transformer
from models.published import join_parts

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

_SMALL: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3, -0.4],
    "latents_std": [1.0, 2.0, 0.5, 1.5],
}
_RESIDUAL: dict[str, Any] = {
    "decoder_base_dim": 12,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
SMALL_SETTINGS = {"2.1": _SMALL, "2.2": _SMALL | _RESIDUAL}
"""What `AutoencoderKLWan` takes, by the version of Wan whose layers it has."""


def randomize(network: nn.Module) -> None:
    """Random values for every parameter, under which signals keep their size: gains are near one, biases small."""
    torch.manual_seed(0)
    for name, parameter in network.named_parameters():
        is_gain = name.endswith("gamma")
        std = 0.1 if is_gain or parameter.ndim == 1 else parameter[0].numel() ** -0.5
        nn.init.normal_(parameter, mean=float(is_gain), std=std)


def make_published(settings: dict[str, Any]) -> "AutoencoderKLWan":
    """An autoencoder of diffusers, newly initialized."""
    from diffusers import AutoencoderKLWan  # it takes seconds to import: not while tests are collected

    return AutoencoderKLWan(**settings).eval()


def make_pair(settings: dict[str, Any]) -> tuple["AutoencoderKLWan", WanAutoencoder]:
    """An autoencoder of diffusers with random weights, and ours with the same."""
    theirs = make_published(settings)
    randomize(theirs)
    config = read_published_config(dict(theirs.config))
    ours = WanAutoencoder(config).eval()
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[published] for name, published in published_names(config).items()})
    return theirs, ours


def copy_transformer(peer: Any) -> tuple[Wan, PublishedTransformer]:  # noqa: ANN401 - of diffusers
    """Our network with the weights of a transformer of diffusers, on its device."""
    described = read_transformer(dict(peer.config))
    with next(peer.parameters()).device:
        network = build_network(described.config, described.channels, described.embedding_width)
    assert isinstance(network, Wan)
    theirs, shapes = peer.state_dict(), network.state_dict()
    network.load_state_dict(
        {
            ours: join_parts([theirs[part.name] for part in parts], shapes[ours].shape)
            for ours, parts in published_tensors(described).items()
        }
    )
    return network, described
