"""An image encoder of CLIP gives what transformers gives, and is refused by file and field where it cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.image.pretrained import (
    ImageEncoderError,
    PretrainedImageEncoder,
    ProcessorConfig,
    check_image_encoder,
    image_encoder_fingerprint,
    prepared,
)
from testing.published import IMAGE_SIDE, IMAGE_WIDTH, make_image_encoder

CPU = torch.device("cpu")


def picture_of(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


@pytest.fixture
def folder(tmp_path) -> Path:
    """The encoder's folder, with its processor's beside it."""
    make_image_encoder().save_pretrained(tmp_path / "image_encoder")
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    ).save_pretrained(tmp_path / "image_processor")
    return tmp_path / "image_encoder"


@pytest.mark.parametrize(("height", "width"), [(48, 80), (81, 33), (16, 16), (9, 14)])
def test_pictures_are_prepared_as_transformers_prepares_them(height, width):
    peer = CLIPImageProcessorPil()
    config = ProcessorConfig.model_validate(json.loads(peer.to_json_string()))
    picture = picture_of(height, width)
    theirs = peer(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(prepared(picture, config), theirs)


def test_embeddings_are_the_states_before_the_last_layer(folder):
    peer = CLIPVisionModel.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder.parent / "image_processor")
    picture = picture_of(20, 30)
    pixels = processor(images=Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        theirs = peer(**pixels, output_hidden_states=True).hidden_states[-2]
    ours = PretrainedImageEncoder(folder, CPU)(picture)
    assert ours.shape == (1, 1 + (IMAGE_SIDE // 8) ** 2, IMAGE_WIDTH)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_missing_or_damaged_is_named(folder):
    assert check_image_encoder(folder).hidden_size == IMAGE_WIDTH
    before = image_encoder_fingerprint(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "model.safetensors", metadata={"format": "pt"})
    assert image_encoder_fingerprint(folder) != before
    with pytest.raises(ImageEncoderError, match=r"image_encoder lacks weights that its config\.json promises"):
        PretrainedImageEncoder(folder, CPU)
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(
        ImageEncoderError, match=r"image_encoder cannot be loaded as an image encoder: .*; copy it again"
    ):
        PretrainedImageEncoder(folder, CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ImageEncoderError, match=r"image_encoder holds no safetensors"):
        check_image_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ImageEncoderError, match=r"config\.json: content: Invalid JSON"):
        check_image_encoder(folder)
    (folder.parent / "image_processor" / "preprocessor_config.json").unlink()
    with pytest.raises(ImageEncoderError, match=r"preprocessor_config\.json is missing; copy the whole repository"):
        check_image_encoder(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"do_center_crop": False}, r"do_center_crop: Input should be True"),
        ({"resample": 0}, r"resample: "),
        ({"size": {"height": 224, "width": 200}}, r"size: "),
        ({"size": 16, "crop_size": 32}, r"crop_size: .*a square of 32 pixels is not in a picture of 16"),
        ({"image_mean": [0.5]}, r"image_mean"),
    ],
)
def test_other_preparations_are_refused_by_field(folder, fields, message):
    path = folder.parent / "image_processor" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ImageEncoderError, match=r"preprocessor_config\.json: " + message):
        check_image_encoder(folder)
