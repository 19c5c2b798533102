"""Small models that caption and score pictures, with random weights, in the layout of a model hub."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
)

from testing.text_encoders import write_tokenizer

SIDE = 32  # pixels


class MeanBrightness(nn.Module):
    """Scores a picture by its mean."""

    def forward(self, pictures: Tensor) -> Tensor:
        """From (b 3 s s) to (b)."""
        return pictures.mean(dim=(1, 2, 3))


def write_brightness_score(path: Path) -> Path:
    """A TorchScript file of `MeanBrightness`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(MeanBrightness()), path)
    return path


def _write_preprocessing(folder: Path) -> int:
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return write_tokenizer(folder)


def write_clip(folder: Path) -> Path:
    """A CLIP model."""
    size = _write_preprocessing(folder)
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**part, "vocab_size": size, "max_position_embeddings": 16, "eos_token_id": 1, "pad_token_id": 0},
        vision_config={**part, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    return folder


def write_captioner(folder: Path) -> Path:
    """A BLIP captioner."""
    size = _write_preprocessing(folder)
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **part,
            "encoder_hidden_size": 16,
            "vocab_size": size,
            "max_position_embeddings": 32,
            "bos_token_id": 3,
            "eos_token_id": 1,
            "sep_token_id": 1,
            "pad_token_id": 0,
        },
        vision_config={**part, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    return folder
