"""How well a clip shows its text, by a CLIP model from a folder on this machine.

The score of a clip is the mean over its frames of the cosine between the embeddings of frame and text, as in Wu et al.
2021 (GODIVA, "CLIPSIM") and Hessel et al. 2021 (CLIPScore) without the latter's scale.
"""

from pathlib import Path
from typing import Any

import torch

from data.errors import first_line
from data.records import Frames
from models.text.pretrained import text_encoder_fingerprint
from pipeline.evaluate.features import FeatureError


class TextSimilarity:
    """A CLIP model in the layout of a model hub; safetensors only, nothing is downloaded.

    Raises:
        FeatureError: transformers is not installed, or the folder holds no CLIP model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        _check_folder(folder)
        try:
            import transformers
        except ImportError as error:
            raise FeatureError(
                "text-video similarity needs the package transformers; install the extra: pip install 'reelflow[text]'"
            ) from error
        library: Any = transformers
        try:
            self._model = library.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._images = library.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            self._tokens = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise FeatureError(f"{folder} holds no CLIP model that can be loaded: {first_line(error)}") from error
        self._model = self._model.to(device).eval().requires_grad_(False)
        self._device = device

    def score(self, frames: Frames, text: str) -> float:
        """The mean cosine of frames and text, in [-1, 1]; the text is cut at the model's length."""
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokens([text], truncation=True, max_length=length, return_tensors="pt").to(self._device)
        pixels = self._images(list(frames), return_tensors="pt")["pixel_values"].to(self._device)
        output = self._model(**tokens, pixel_values=pixels)
        return float((output.image_embeds @ output.text_embeds.T).mean())


def similarity_fingerprint(folder: Path) -> str:
    """Changes with the model in the folder.

    Raises:
        FeatureError: there is no such folder.
    """
    _check_folder(folder)
    return text_encoder_fingerprint(folder)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FeatureError(f"{folder}: there is no such folder; name the folder of a CLIP model")
