"""A small published pipeline with random weights, written by diffusers and transformers; nothing is downloaded.

The libraries are imported inside the functions: they take seconds to load.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from testing.text_encoders import write_tokenizer
from testing.wan import SMALL_SETTINGS, make_published, randomize

if TYPE_CHECKING:
    from diffusers import WanPipeline, WanTransformer3DModel
    from transformers import UMT5EncoderModel

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


def write_pipeline(folder: Path, version: str = "2.1", scheduler: str = "euler", shift: float = 3.0) -> "WanPipeline":
    """Write a pipeline of WanPipeline; returns it.

    Args:
        version: of the autoencoder, a key of `SMALL_SETTINGS`.
        scheduler: "euler" or "unipc".
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
    from transformers import AutoTokenizer

    autoencoder = make_published(SMALL_SETTINGS[version])
    randomize(autoencoder)
    steps: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    if scheduler == "unipc":
        steps = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    write_tokenizer(folder / "tokenizer")
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        text_encoder=make_text_encoder(),
        vae=autoencoder,
        scheduler=steps,
        transformer=make_transformer(),
        expand_timesteps=version == "2.2",  # each token has a time of its own, as in TI2V-5B
    )
    pipeline.save_pretrained(folder)
    return pipeline
