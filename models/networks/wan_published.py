"""The names, shapes and settings that a published Wan transformer has in its folder (the layout of diffusers)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from data.records import Record
from models.networks.config import NetworkConfig, WanConfig
from models.published import Correspondence, PublishedTensor

CLASS_NAME = "WanTransformer3DModel"


class PublishedConfig(Record):
    """config.json of the folder. Settings that no published transformer has are refused by their name."""

    model_config = ConfigDict(populate_by_name=True)

    class_name: Literal["WanTransformer3DModel"] = Field(default=CLASS_NAME, alias="_class_name")
    patch_size: tuple[Literal[1], int, int] = (1, 2, 2)
    num_attention_heads: int = Field(default=40, ge=1)
    attention_head_dim: int = Field(default=128, ge=1)
    in_channels: int = Field(default=16, ge=1)
    out_channels: int | None = Field(default=16, ge=1)
    text_dim: int = Field(default=4096, ge=1)
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: Literal[True] = True
    qk_norm: Literal["rms_norm_across_heads"] = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: None = None


@dataclass(frozen=True)
class PublishedTransformer:
    """A published transformer: what `build_network` takes."""

    config: WanConfig
    channels: int
    """Of the latents."""
    embedding_width: int
    """Channels of the text encoder's embeddings."""


def read_transformer(fields: dict[str, Any]) -> PublishedTransformer:
    """The transformer that config.json describes. Keys that begin with `_` say who wrote it, and are not read.

    Raises:
        ValidationError: a field is unknown, of another architecture or not supported; names it.
        ValueError: the fields contradict each other.
    """
    kept = {name: value for name, value in fields.items() if name == "_class_name" or not name.startswith("_")}
    published = PublishedConfig.model_validate(kept)
    width = published.num_attention_heads * published.attention_head_dim
    channels = published.out_channels or published.in_channels
    _, height, side = published.patch_size
    if height != side:
        raise ValueError(f"patch_size is {list(published.patch_size)}, but patches are squares of one frame")
    if published.in_channels < channels:
        raise ValueError(f"in_channels is {published.in_channels}, less than out_channels {channels}")
    if published.added_kv_proj_dim not in (None, width) or (
        (published.added_kv_proj_dim is None) != (published.image_dim is None)
    ):
        raise ValueError(
            f"added_kv_proj_dim is {published.added_kv_proj_dim} and image_dim {published.image_dim}: either both are "
            f"null, or added_kv_proj_dim is the width, {width}"
        )
    config = WanConfig(
        architecture="wan",
        width=width,
        depth=published.num_layers,
        heads=published.num_attention_heads,
        mlp_width=published.ffn_dim,
        patch_size=side,
        time_width=published.freq_dim,
        image_width=published.image_dim,
        condition_channels=published.in_channels - channels,
        norm_eps=published.eps,
    )
    return PublishedTransformer(config, channels, published.text_dim)


def as_published(config: NetworkConfig, channels: int, embedding_width: int | None) -> PublishedTransformer:
    """A network as a published one: what `read_transformer` would give.

    Args:
        channels: of the latents.
        embedding_width: channels of a pretrained text encoder's embeddings; None: captions are read as bytes or words.

    Raises:
        ValueError: no network of this architecture is published.
    """
    if not isinstance(config, WanConfig) or embedding_width is None:
        raise ValueError(f"a network of architecture {config.architecture} has no published layout; one of wan has")
    return PublishedTransformer(config, channels, embedding_width)


def published_fields(transformer: PublishedTransformer) -> dict[str, Any]:
    """The content of config.json: the inverse of `read_transformer`."""
    config = transformer.config
    published = PublishedConfig(
        patch_size=(1, config.patch_size, config.patch_size),
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=transformer.channels + config.condition_channels,
        out_channels=transformer.channels,
        text_dim=transformer.embedding_width,
        freq_dim=config.time_width,
        ffn_dim=config.mlp_width,
        num_layers=config.depth,
        eps=config.norm_eps,
        image_dim=config.image_width,
        added_kv_proj_dim=None if config.image_width is None else config.width,
    )
    return published.model_dump(mode="json", by_alias=True)


def published_tensors(transformer: PublishedTransformer) -> Correspondence:
    """The published tensors that each weight of `Wan` consists of."""
    config, width = transformer.config, transformer.config.width
    p, channels = config.patch_size, transformer.channels
    tensors: dict[str, tuple[PublishedTensor, ...]] = {
        "patch.weight": (
            PublishedTensor("patch_embedding.weight", (width, channels + config.condition_channels, 1, p, p)),
        ),
        "patch.bias": (PublishedTensor("patch_embedding.bias", (width,)),),
        "final_modulation": (PublishedTensor("scale_shift_table", (1, 2, width)),),
    }
    embedder = "condition_embedder"
    for ours, theirs, width_in, width_out in (
        ("time.first", [f"{embedder}.time_embedder.linear_1"], config.time_width, width),
        ("time.second", [f"{embedder}.time_embedder.linear_2"], width, width),
        ("time_modulation", [f"{embedder}.time_proj"], width, 6 * width),
        ("text.first", [f"{embedder}.text_embedder.linear_1"], transformer.embedding_width, width),
        ("text.second", [f"{embedder}.text_embedder.linear_2"], width, width),
        ("final", ["proj_out"], width, channels * p * p),
    ):
        tensors |= _linear(ours, theirs, width_in, width_out)
    if (image := config.image_width) is not None:
        place = f"{embedder}.image_embedder"
        tensors |= _norm("image.norm_in", f"{place}.norm1", image)
        tensors |= _linear("image.first", [f"{place}.ff.net.0.proj"], image, image)
        tensors |= _linear("image.second", [f"{place}.ff.net.2"], image, width)
        tensors |= _norm("image.norm_out", f"{place}.norm2", width)
    for number in range(config.depth):
        for ours, parts in _block(config).items():
            tensors[f"blocks.{number}.{ours}"] = tuple(
                PublishedTensor(f"blocks.{number}.{part.name}", part.shape) for part in parts
            )
    return tensors


def unused_tensors(transformer: PublishedTransformer) -> list[str]:
    """Names of tensors that published image-to-video transformers hold, and that nothing computes with."""
    if transformer.config.image_width is None:
        return []
    return [f"blocks.{number}.attn2.norm_added_q.weight" for number in range(transformer.config.depth)]


def _block(config: WanConfig) -> dict[str, tuple[PublishedTensor, ...]]:
    """The tensors of one block, without its number."""
    width = config.width
    tensors = {"modulation": (PublishedTensor("scale_shift_table", (1, 6, width)),)}
    tensors |= _linear("qkv", ["attn1.to_q", "attn1.to_k", "attn1.to_v"], width, width)
    tensors |= _linear("out", ["attn1.to_out.0"], width, width)
    tensors |= _linear("cross_query", ["attn2.to_q"], width, width)
    tensors |= _linear("cross_key_value", ["attn2.to_k", "attn2.to_v"], width, width)
    tensors |= _linear("cross_out", ["attn2.to_out.0"], width, width)
    tensors |= _linear("up", ["ffn.net.0.proj"], width, config.mlp_width)
    tensors |= _linear("down", ["ffn.net.2"], config.mlp_width, width)
    tensors |= _norm("cross_norm", "norm2", width)
    for ours, theirs in _gains(config):
        tensors[f"{ours}.weight"] = (PublishedTensor(f"{theirs}.weight", (width,)),)
    if config.image_width is not None:
        tensors |= _linear("image_key_value", ["attn2.add_k_proj", "attn2.add_v_proj"], width, width)
    return tensors


def _gains(config: WanConfig) -> Iterator[tuple[str, str]]:
    """The norms without a bias, of ours and published."""
    yield "query_norm", "attn1.norm_q"
    yield "key_norm", "attn1.norm_k"
    yield "cross_query_norm", "attn2.norm_q"
    yield "cross_key_norm", "attn2.norm_k"
    if config.image_width is not None:
        yield "image_key_norm", "attn2.norm_added_k"


def _linear(ours: str, theirs: list[str], width_in: int, width_out: int) -> dict[str, tuple[PublishedTensor, ...]]:
    """A linear layer that consists of published layers, each from `width_in` to `width_out` channels."""
    return {
        f"{ours}.weight": tuple(PublishedTensor(f"{name}.weight", (width_out, width_in)) for name in theirs),
        f"{ours}.bias": tuple(PublishedTensor(f"{name}.bias", (width_out,)) for name in theirs),
    }


def _norm(ours: str, theirs: str, width: int) -> dict[str, tuple[PublishedTensor, ...]]:
    """A layer norm with weight and bias."""
    return {f"{ours}.{part}": (PublishedTensor(f"{theirs}.{part}", (width,)),) for part in ("weight", "bias")}
