"""A small published pipeline with random weights, written by diffusers and transformers; nothing is downloaded.

The libraries are imported inside the functions: they take seconds to load.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from testing.text_encoders import write_tokenizer
from testing.wan import SMALL_SETTINGS, make_published, randomize

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
    from transformers import CLIPVisionModel, UMT5EncoderModel

TEXT_WIDTH = 20
TINY_TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 56,
    "num_layers": 2,
}
"""Settings of a transformer of Wan on latents of four channels."""
IMAGE_WIDTH, IMAGE_SIDE = 12, 16
TINY_IMAGE_TRANSFORMER = TINY_TRANSFORMER | {"in_channels": 12, "image_dim": IMAGE_WIDTH, "added_kv_proj_dim": 48}
"""The same for image to video, as of Wan 2.1: latents, a mask of four channels, latents of the image."""


def make_transformer(settings: dict[str, Any] = TINY_TRANSFORMER) -> "WanTransformer3DModel":
    """A transformer of diffusers with random weights, of all of which its output depends."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    peer = WanTransformer3DModel(**settings).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    return peer


def make_text_encoder() -> "UMT5EncoderModel":
    """A text encoder of the kind that Wan has, for the words of `testing.text_encoders`."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(1)
    config = UMT5Config(vocab_size=32, d_model=TEXT_WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    return UMT5EncoderModel(config).eval()


def make_image_encoder() -> "CLIPVisionModel":
    """An image encoder of the kind that Wan 2.1 has for image to video."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIDE,
        patch_size=8,
        initializer_factor=5.0,
    )
    return CLIPVisionModel(config).eval()


def write_pipeline(
    folder: Path,
    version: str = "2.1",
    scheduler: str = "euler",
    shift: float = 3.0,
    transformer: dict[str, Any] | None = None,
    autoencoder: dict[str, Any] | None = None,
) -> "WanPipeline":
    """Write a pipeline of WanPipeline; returns it.

    Args:
        version: of the autoencoder, a key of `SMALL_SETTINGS`.
        scheduler: "euler" or "unipc".
        transformer: settings that differ from `TINY_TRANSFORMER`.
        autoencoder: settings that differ from those of the version.
    """
    from diffusers import WanPipeline

    pipeline = WanPipeline(
        **_shared_parts(folder, version, scheduler, shift, autoencoder),
        transformer=make_transformer(TINY_TRANSFORMER | (transformer or {})),
        expand_timesteps=version == "2.2",  # each token has a time of its own, as in TI2V-5B
    )
    pipeline.save_pretrained(folder)
    return pipeline


def write_image_pipeline(
    folder: Path, scheduler: str = "euler", shift: float = 3.0, transformer: dict[str, Any] | None = None
) -> "WanImageToVideoPipeline":
    """Write a pipeline of WanImageToVideoPipeline with the parts that Wan 2.1 has; returns it.

    Args:
        scheduler: "euler" or "unipc".
        transformer: settings that differ from `TINY_IMAGE_TRANSFORMER`.
    """
    from diffusers import WanImageToVideoPipeline
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor: Any = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    pipeline = WanImageToVideoPipeline(
        **_shared_parts(folder, "2.1", scheduler, shift),
        transformer=make_transformer(TINY_IMAGE_TRANSFORMER | (transformer or {})),
        image_encoder=make_image_encoder(),
        image_processor=processor,
    )
    pipeline.save_pretrained(folder)
    return pipeline


def _shared_parts(
    folder: Path, version: str, scheduler: str, shift: float, autoencoder_settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What every pipeline of Wan has, by the names of its arguments."""
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
    from transformers import AutoTokenizer

    autoencoder = make_published(SMALL_SETTINGS[version] | (autoencoder_settings or {}))
    randomize(autoencoder)
    steps: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    if scheduler == "unipc":
        steps = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    write_tokenizer(folder / "tokenizer")
    return {
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder": make_text_encoder(),
        "vae": autoencoder,
        "scheduler": steps,
    }
