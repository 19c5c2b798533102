"""Captions by a model that describes pictures without being asked: BLIP, GIT, or an encoder-decoder of transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from models.curation.folders import load_model, load_preprocessing, model_type

CLASSES = {  # in transformers, by `model_type`
    "blip": "BlipForConditionalGeneration",
    "git": "GitForCausalLM",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
}


def check_captioner(folder: Path) -> None:
    """Check everything that does not need the weights.

    Raises:
        CurationModelError: as `model_type`.
    """
    model_type(folder, tuple(CLASSES))


class Captioner:
    """Pictures to captions, always the most probable one token after token, so that equal pictures give equal ones.

    Args:
        max_tokens: captions end there.

    Raises:
        CurationModelError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path, max_tokens: int, device: torch.device) -> None:
        kind = model_type(folder, tuple(CLASSES))
        import transformers

        library: Any = transformers
        self._images, self._tokenizer = load_preprocessing(folder)
        self._model = load_model(getattr(library, CLASSES[kind]), folder, device)
        self._max_tokens, self._device = max_tokens, device

    @torch.inference_mode()
    def __call__(self, pictures: list[UInt8[np.ndarray, "h w 3"]]) -> list[str]:
        """The caption of each picture; white space at its ends is removed, and nothing may be left."""
        pixels = self._images(pictures, return_tensors="pt")["pixel_values"].to(self._device)
        tokens = self._model.generate(
            pixel_values=pixels, max_new_tokens=self._max_tokens, do_sample=False, num_beams=1
        )
        return [text.strip() for text in self._tokenizer.batch_decode(tokens, skip_special_tokens=True)]
