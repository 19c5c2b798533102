"""Wan's autoencoders as they are published, in the layout of diffusers: its `config.json` and its names of the weights.

The weights themselves have the same shapes and values in both. Nothing here loads torch.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from models.autoencoder.config import WanAutoencoderConfig, WanLevel

CLASS_NAME = "AutoencoderKLWan"
_FIELDS = {  # key of config.json: the field that has its value
    "base_dim": "width",
    "decoder_base_dim": "decoder_width",
    "z_dim": "latent_channels",
    "dim_mult": "multipliers",
    "num_res_blocks": "num_blocks",
    "temperal_downsample": "temporal_downsampling",
    "latents_mean": "latent_mean",
    "latents_std": "latent_std",
    "is_residual": "residual",
    "patch_size": "patch_size",
}
_ONLY = {"attn_scales": [], "dropout": 0.0, "clip_output": False}  # keys of which only this value is supported


def read_published_config(fields: Mapping[str, Any]) -> WanAutoencoderConfig:
    """The configuration that a published `config.json` describes.

    Keys that are missing have diffusers' defaults, which are those of Wan 2.1, except for the latents' statistics.

    Raises:
        ValueError: names the key that is missing, unknown, impossible or not supported.
    """
    if (kind := fields.get("_class_name", CLASS_NAME)) != CLASS_NAME:
        raise ValueError(f"_class_name is {kind!r}, but this is an autoencoder of Wan only if it is {CLASS_NAME!r}")
    given = {key: value for key, value in fields.items() if not key.startswith("_")}  # others are diffusers' own notes
    for key, value in _ONLY.items():
        if given.setdefault(key, value) != value:
            raise ValueError(f"{key} is {given[key]!r}, but only {value!r} is supported")
    settings = {_FIELDS[key]: value for key, value in given.items() if key in _FIELDS}
    if settings.get("decoder_width") is None:
        settings["decoder_width"] = settings.get("width", WanAutoencoderConfig.model_fields["width"].default)
    if settings.get("patch_size") is None:
        settings["patch_size"] = 1
    try:
        config = WanAutoencoderConfig.model_validate(settings)
    except ValidationError as error:
        raise ValueError("; ".join(_mistake(mistake) for mistake in error.errors())) from error
    implied = _implied(config)
    for key, value in given.items():
        if key not in {*_FIELDS, *_ONLY, *implied}:
            raise ValueError(f"{key} is no key of the config.json of an {CLASS_NAME} that is known here")
        if value != implied.get(key, value):
            raise ValueError(f"{key} is {value!r}, but the other keys imply {implied[key]}")
    return config


def published_config(config: WanAutoencoderConfig) -> dict[str, Any]:
    """The `config.json` of a configuration: the inverse of `read_published_config`."""
    settings = config.model_dump(mode="json")
    fields = {key: settings[field] for key, field in _FIELDS.items()}
    fields["patch_size"] = None if config.patch_size == 1 else config.patch_size
    return {"_class_name": CLASS_NAME, **fields, "attn_scales": [], "dropout": 0.0, **_implied(config)}


def _implied(config: WanAutoencoderConfig) -> dict[str, int]:
    """Keys of config.json that follow from the others."""
    channels, compression = 3 * config.patch_size**2, config.compression
    return {
        "in_channels": channels,
        "out_channels": channels,
        "scale_factor_temporal": compression.temporal_factor,
        "scale_factor_spatial": compression.spatial_factor,
    }


def _mistake(error: ErrorDetails) -> str:
    """A mistake that pydantic found, with the keys of config.json in place of the fields."""
    keys = {field: key for key, field in _FIELDS.items()}
    place = ".".join(keys.get(str(part), str(part)) for part in error["loc"])  # empty for one of several fields
    message = re.sub(r"\w+", lambda word: keys.get(word[0], word[0]), error["msg"].removeprefix("Value error, "))
    return f"{place}: {message}" if place else message


_BLOCK = {"norm_1": "norm1", "conv_1.conv": "conv1", "norm_2": "norm2", "conv_2.conv": "conv2"}
_SHORTCUT = {"shortcut.conv": "conv_shortcut"}
_ATTENTION = {"norm": "norm", "query_key_value": "to_qkv", "out": "proj"}
_HEAD = {"norm": "norm_out", "conv.conv": "conv_out"}


def published_names(config: WanAutoencoderConfig) -> dict[str, str]:
    """The published name of every weight, by the name that it has in `WanAutoencoder`."""
    names = {}
    for ours, theirs in {**_encoder_layers(config), **_decoder_layers(config)}.items():
        if ours.rpartition(".")[2].startswith("norm"):
            names[f"{ours}.gain"] = f"{theirs}.gamma"
        else:
            names |= {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}
    return names


def _encoder_layers(config: WanAutoencoderConfig) -> dict[str, str]:
    layers, place = {"encoder.0.conv": "encoder.conv_in"}, 0
    for number, level in enumerate(config.encoder_levels):
        if config.residual:
            theirs = [f"encoder.down_blocks.{number}.resnets.{block}" for block in range(config.num_blocks)]
            theirs.append(f"encoder.down_blocks.{number}.downsampler")
        else:  # blocks and resamplings of all levels are one list
            theirs = [f"encoder.down_blocks.{place + block}" for block in range(config.num_blocks + 1)]
        layers |= _level_layers(f"encoder.{1 + number}.layers", level, theirs, {"time": "time_conv"})
        place += config.num_blocks + 1
    middle = 1 + len(config.encoder_levels)
    layers |= _middle_layers("encoder", middle)
    layers |= _within(f"encoder.{middle + 3}", "encoder", _HEAD)
    return {**layers, f"encoder.{middle + 4}.conv": "quant_conv"}


def _decoder_layers(config: WanAutoencoderConfig) -> dict[str, str]:
    layers = {"decoder.0.conv": "post_quant_conv", "decoder.1.conv": "decoder.conv_in"}
    layers |= _middle_layers("decoder", 2)
    for number, level in enumerate(config.decoder_levels):
        theirs = [f"decoder.up_blocks.{number}.resnets.{block}" for block in range(config.num_blocks + 1)]
        theirs.append(f"decoder.up_blocks.{number}.{'upsampler' if config.residual else 'upsamplers.0'}")
        layers |= _level_layers(f"decoder.{5 + number}.layers", level, theirs, {"time.conv": "time_conv"})
    return layers | _within(f"decoder.{5 + len(config.decoder_levels)}", "decoder", _HEAD)


def _level_layers(ours: str, level: WanLevel, theirs: list[str], time: dict[str, str]) -> dict[str, str]:
    """`theirs`: their names of the blocks, then of the resampling; `time`: its convolution over time."""
    layers, channels = {}, level.channels_in
    for block, name in enumerate(theirs[:-1]):
        layers |= _within(f"{ours}.{block}", name, _BLOCK if channels == level.width else _BLOCK | _SHORTCUT)
        channels = level.width
    if level.space == 2:
        resampling = {"space": "resample.1"} | (time if level.time == 2 else {})
        layers |= _within(f"{ours}.{len(theirs) - 1}", theirs[-1], resampling)
    return layers


def _middle_layers(side: str, first: int) -> dict[str, str]:
    """`first`: position of the first of the three layers between the levels and the latents."""
    return {
        **_within(f"{side}.{first}", f"{side}.mid_block.resnets.0", _BLOCK),
        **_within(f"{side}.{first + 1}", f"{side}.mid_block.attentions.0", _ATTENTION),
        **_within(f"{side}.{first + 2}", f"{side}.mid_block.resnets.1", _BLOCK),
    }


def _within(ours: str, theirs: str, layers: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{one}": f"{theirs}.{other}" for one, other in layers.items()}
