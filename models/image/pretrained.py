"""A frozen image encoder of CLIP (Radford et al. 2021) from a folder on this machine, as published pipelines have one.

    image_encoder/    config.json and safetensors: a vision transformer
    image_processor/  preprocessor_config.json: how pictures are resized and normalised for it

Nothing is downloaded, no code of the folder is run, and pickled weights are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from data.errors import ReelflowError, first_line
from data.records import Record
from models.published import folders_fingerprint

CONFIG_NAME = "config.json"
PROCESSOR_NAME = "preprocessor_config.json"


class ImageEncoderError(ReelflowError, ValueError):
    """An image encoder that cannot be used; the message names the file and the way out."""


class EncoderConfig(Record):
    """What is read of config.json."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["clip_vision_model"]
    hidden_size: int = Field(ge=1)
    image_size: int = Field(ge=1)


class ProcessorConfig(Record):
    """What is read of preprocessor_config.json. Steps that it turns off, or that are not known here, are refused."""

    model_config = ConfigDict(extra="ignore")

    do_resize: Literal[True] = True
    do_center_crop: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    resample: Literal[Image.Resampling.BICUBIC] = Image.Resampling.BICUBIC
    size: int = Field(default=224, ge=1)
    """Pixels of the shorter side after resizing."""
    crop_size: int = Field(default=224, ge=1)
    """Side of the square in the middle that is kept."""
    rescale_factor: float = Field(default=1 / 255, gt=0)
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @field_validator("size", "crop_size", mode="before")
    @classmethod
    def _side(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        """The number in {"shortest_edge": 224} or {"height": 224, "width": 224}."""
        if isinstance(value, Mapping) and len(set(value.values())) == 1:
            return next(iter(value.values()))
        return value

    @field_validator("crop_size")
    @classmethod
    def _fits(cls, crop_size: int, info: Any) -> int:  # noqa: ANN401 - of pydantic
        if crop_size > info.data.get("size", crop_size):
            raise ValueError(f"a square of {crop_size} pixels is not in a picture of {info.data['size']}")
        return crop_size


def processor_folder(folder: Path) -> Path:
    """Where the settings for an encoder's pictures are: in its own folder, or in `image_processor` beside it."""
    return folder if (folder / PROCESSOR_NAME).is_file() else folder.parent / "image_processor"


def image_encoder_fingerprint(folder: Path) -> str:
    """Changes with the weights or the settings."""
    return folders_fingerprint(folder, processor_folder(folder))


def check_image_encoder(folder: Path) -> EncoderConfig:
    """Check everything that does not need the weights; returns what the encoder is.

    Raises:
        ImageEncoderError: transformers is not installed, or a file is missing, damaged or of another kind of model.
    """
    try:
        import transformers  # noqa: F401 - the extra `text`
    except ImportError as error:
        raise ImageEncoderError(
            "an image encoder needs the package transformers; install the extra: pip install 'reelflow[text]'"
        ) from error
    processor_path = processor_folder(folder) / PROCESSOR_NAME
    processor, config = _read(processor_path, ProcessorConfig), _read(folder / CONFIG_NAME, EncoderConfig)
    if processor.crop_size != config.image_size:
        raise ImageEncoderError(
            f"{processor_path}: crop_size is {processor.crop_size}, but the encoder beside it takes pictures of "
            f"{config.image_size} pixels (image_size): the folder's parts are not of one pipeline"
        )
    if not any(folder.glob("*.safetensors")):
        raise ImageEncoderError(f"{folder} holds no safetensors; save the model with safe_serialization=True")
    return config


def _read(path: Path, kind: type[Any]) -> Any:  # noqa: ANN401 - a record of that kind
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ImageEncoderError(
            f"{path} is missing; copy the whole repository of the pipeline, with its image encoder"
        ) from error
    except OSError as error:
        raise ImageEncoderError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "content"
        raise ImageEncoderError(
            f"{path}: {place}: {first['msg']}; pipelines with a vision transformer of CLIP are supported"
        ) from error


def prepared(picture: UInt8[np.ndarray, "h w 3"], config: ProcessorConfig) -> Float[Tensor, "3 side side"]:
    """A picture as the encoder takes it: its shorter side resized, the square in the middle cut out, normalised."""
    height, width, _ = picture.shape
    short, side = min(height, width), config.size
    size = (side * width // short, side * height // short)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - config.crop_size) // 2, (resized.shape[1] - config.crop_size) // 2
    square = torch.tensor(resized[top : top + config.crop_size, left : left + config.crop_size])
    mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
    return rearrange((square.float() * config.rescale_factor - mean) / std, "h w c -> c h w")


class PretrainedImageEncoder:
    """A picture to a vector for the whole and one per patch: the states before the last layer.

    Raises:
        ImageEncoderError: the folder cannot be loaded, or lacks weights.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        check_image_encoder(folder)
        self._processor: ProcessorConfig = _read(processor_folder(folder) / PROCESSOR_NAME, ProcessorConfig)
        from transformers import CLIPVisionModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            read: Any = CLIPVisionModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except Exception as error:  # of any class, by what is wrong in which file
            raise ImageEncoderError(
                f"{folder} cannot be loaded as an image encoder: {first_line(error).rstrip('.')}; copy it again, whole"
            ) from error
        model, loaded = read
        if loaded["missing_keys"]:
            names = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise ImageEncoderError(
                f"{folder} lacks weights that its {CONFIG_NAME} promises ({names}); copy it again, whole"
            )
        self._device = device
        self._model: Any = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 k e"]:
        """Embed."""
        pixels = prepared(picture, self._processor)[None].to(self._device)
        return self._model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2].float()
