"""Captions through a frozen text encoder: from a folder of hub weights to a clip sampled with it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5EncoderModel

from models.text.pretrained import PretrainedTextEncoder, TextEncoderError, text_encoder_fingerprint
from testing.text_encoders import WIDTH, write_text_encoder

CPU = torch.device("cpu")

CAPTIONS = ["a red circle moves left", "", "a blue star"]


def test_embeddings_are_those_of_the_model_itself(text_encoder_dir):
    embedded = PretrainedTextEncoder(text_encoder_dir, 8, CPU)(CAPTIONS)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(text_encoder_dir),
        T5EncoderModel.from_pretrained(text_encoder_dir).eval(),
    )
    for caption, values, mask in zip(CAPTIONS, embedded.values, embedded.mask, strict=True):
        ids = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model(ids).last_hidden_state[0]
        length = len(caption.split()) + 1  # the end token
        assert mask.tolist() == [True] * length + [False] * (8 - length)
        torch.testing.assert_close(values[:length].float(), expected, rtol=2e-3, atol=2e-3)  # 11 bits
        assert not values[length:].any()


def test_long_captions_are_cut_and_counted(text_encoder_dir):
    encoder = PretrainedTextEncoder(text_encoder_dir, 4, CPU)
    assert encoder([CAPTIONS[0]]).values.shape == (1, 4, WIDTH)
    assert [encoder.num_truncated([caption]) for caption in (*CAPTIONS, "a blue star moves")] == [1, 0, 0, 1]


def test_a_folder_that_cannot_be_used_is_refused_and_says_why(text_encoder_dir, tmp_path):
    def broken(name):
        return shutil.copytree(text_encoder_dir, tmp_path / name)

    def refused(path, match):
        with pytest.raises(TextEncoderError, match=match) as caught:
            PretrainedTextEncoder(path, 8, CPU)
        assert str(path) in str(caught.value)

    refused(tmp_path / "nowhere", "holds no config.json")
    pickled = broken("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"only pickled weights \(pytorch_model.bin\)")
    partial = broken("partial")
    weights = load_file(partial / "model.safetensors")
    weights.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight")
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    refused(partial, r"lacks weights .*block\.1\.layer\.1")
    unpadded = broken("unpadded")
    settings = json.loads((unpadded / "tokenizer_config.json").read_text())
    (unpadded / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    refused(unpadded, "no padding token")
    damaged = broken("damaged")
    (damaged / "config.json").write_text("{")
    refused(damaged, "cannot be loaded")


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def spoil_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: spoil_config(folder, d_model=2 * WIDTH),
        lambda folder: spoil_config(folder, d_model="x"),
        lambda folder: spoil_config(folder, num_heads=0),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_text("[]"),
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"),
    ],
    ids=["cut", "empty", "width", "text", "no heads", "config", "tokenizer config", "tokenizer", "not UTF-8"],
)
def test_a_folder_with_a_damaged_file_is_refused_in_a_short_message(text_encoder_dir, tmp_path, spoil):
    folder = shutil.copytree(text_encoder_dir, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(TextEncoderError) as caught:
        PretrainedTextEncoder(folder, 8, CPU)
    told = str(caught.value)
    assert told.startswith(f"{folder} cannot be loaded as a text encoder: "), told
    assert told.endswith("; copy it again, whole")
    assert len(told) < 600
    assert "\n" not in told


def test_the_fingerprint_is_of_what_changes_an_embedding(text_encoder_dir, tmp_path):
    copy = shutil.copytree(text_encoder_dir, tmp_path / "copy")
    (copy / "README.md").write_text("about")
    assert text_encoder_fingerprint(copy) == text_encoder_fingerprint(text_encoder_dir)
    assert text_encoder_fingerprint(write_text_encoder(tmp_path / "other", seed=1)) != text_encoder_fingerprint(
        text_encoder_dir
    )
