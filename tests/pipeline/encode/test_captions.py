"""Caption embeddings are read back as they were stored."""

import pytest
import torch
from safetensors.torch import save

from data.errors import DatasetError
from models.text.pretrained import PretrainedTextEncoder
from pipeline.encode.captions import read_embeddings, text_tensors

CPU = torch.device("cpu")

CAPTIONS = ["a red circle moves left", "", "a blue star"]


def test_what_is_stored_is_what_is_read(text_encoder_dir):
    embedded = PretrainedTextEncoder(text_encoder_dir, 8, CPU)(CAPTIONS)
    payloads = [save({"mean": torch.zeros(1), **tensors}) for tensors in text_tensors(embedded)]
    again = read_embeddings(payloads)
    assert torch.equal(again.values, embedded.values)
    assert torch.equal(again.mask, embedded.mask)
    with pytest.raises(DatasetError, match="text"):
        read_embeddings([save({"mean": torch.zeros(1)})])
