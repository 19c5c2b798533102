"""Scores of pictures: how pleasing they are, by a TorchScript network, and how well they show a text, by CLIP."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from models.curation.folders import CurationModelError, load_model, load_preprocessing, model_type
from models.torchscript import TorchScriptError, last_line, load_torchscript


class AestheticScore:
    """A score of each picture by a TorchScript network: from (b 3 s s) RGB in [0, 1] to (b) or (b 1).

    The network contains its own normalisation. Its file is a program: only files that the user names are opened.

    Args:
        pixels: side s of the square in the middle of a picture that the network is shown.

    Raises:
        CurationModelError: the file holds no TorchScript network.
    """

    def __init__(self, path: Path, pixels: int, device: torch.device) -> None:
        try:
            self._network = load_torchscript(path, device)
        except TorchScriptError as error:
            raise CurationModelError(f"{path}: {error}") from error
        self._path, self._pixels, self._device = path, pixels, device

    @torch.inference_mode()
    def __call__(self, pictures: list[UInt8[np.ndarray, "h w 3"]]) -> list[float]:
        """The score of each picture.

        Raises:
            CurationModelError: the network fails, or returns other than one finite number a picture.
        """
        batch = torch.cat([_square(picture, self._pixels) for picture in pictures]).to(self._device)
        try:
            scores: Any = self._network(batch)
        except RuntimeError as error:
            raise CurationModelError(f"{self._path} cannot score pictures: {last_line(error)}") from error
        if not isinstance(scores, Tensor) or scores.numel() != len(pictures) or not scores.isfinite().all():
            raise CurationModelError(f"{self._path} must return one finite number for each of {len(pictures)} pictures")
        return scores.float().flatten().tolist()


def _square(picture: UInt8[np.ndarray, "h w 3"], pixels: int) -> Float[Tensor, "1 3 pixels pixels"]:
    """The square in the middle of a picture, in [0, 1], resized with antialiasing."""
    height, width, _ = picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.tensor(picture[top : top + side, left : left + side]).float() / 255
    batch = rearrange(square, "h w c -> 1 c h w")
    return interpolate(batch, (pixels, pixels), mode="bilinear", antialias=True)


def check_similarity(folder: Path) -> None:
    """Check everything that does not need the weights.

    Raises:
        CurationModelError: as `model_type`.
    """
    model_type(folder, ("clip",))


class PictureTextSimilarity:
    """The cosine of the embeddings of a picture and a text by a CLIP model (Radford et al. 2021), in [-1, 1].

    Raises:
        CurationModelError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        check_similarity(folder)
        from transformers import CLIPModel

        self._images, self._tokenizer = load_preprocessing(folder)
        self._model = load_model(CLIPModel, folder, device)
        self._device = device

    @torch.inference_mode()
    def __call__(self, pictures: list[UInt8[np.ndarray, "h w 3"]], texts: list[str]) -> list[float]:
        """The similarity of each picture to its text, which is cut at the model's length."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt")
        pixels = self._images(pictures, return_tensors="pt")["pixel_values"].to(self._device)
        output = self._model(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
            pixel_values=pixels,
        )
        return (output.image_embeds * output.text_embeds).sum(-1).tolist()
