"""Captions for the DiT: as bytes, or as embeddings that are stored beside the latents of a dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data.dataset.index import read_index
from data.dataset.latents import TEXT_LENGTH_TENSOR, TEXT_TENSOR, read_tensors
from data.dataset.manifest import TextEncoderRecord
from data.dataset.reader import PayloadReader
from data.files.publish import publish_bytes
from models.text.caption import CaptionReader
from models.text.config import TextConfig
from models.text.embeddings import CaptionEmbeddings
from models.text.encoder import read
from models.text.pretrained import (
    STORED_DTYPE,
    PretrainedTextEncoder,
    TextEncoderError,
    check_text_encoder,
    text_encoder_fingerprint,
)
from pipeline.encode.config import TextEncoderConfig
from pipeline.run.precision import prepare_to_compute

NULL_CAPTION_NAME = "null_caption.safetensors"


def byte_captions(text: TextConfig) -> CaptionReader:
    """A reader that represents captions by the first bytes or words of their normalised text."""
    return partial(read, text)


def text_tensors(embeddings: CaptionEmbeddings) -> list[dict[str, Tensor]]:
    """The tensors to store for each caption: its embeddings (n e) in 16 bits, and its number of tokens (1)."""
    values, lengths = embeddings.values.cpu(), embeddings.mask.sum(1, keepdim=True).cpu()
    return [
        {TEXT_TENSOR: value.to(STORED_DTYPE).contiguous(), TEXT_LENGTH_TENSOR: length}
        for value, length in zip(values, lengths, strict=True)
    ]


def read_embeddings(payloads: Sequence[bytes | memoryview]) -> CaptionEmbeddings:
    """The captions that are stored in payloads of a latent dataset, as float32.

    Raises:
        DatasetError: a payload holds no caption.
    """
    values, lengths = read_tensors(payloads, TEXT_TENSOR).float(), read_tensors(payloads, TEXT_LENGTH_TENSOR)
    return CaptionEmbeddings(values, torch.arange(values.shape[1]) < lengths)


@dataclass(frozen=True)
class StoredCaptions:
    """A reader of captions that a latent dataset holds, and of its null caption. It needs no text encoder."""

    dataset_dir: Path
    null_caption: str

    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """The embeddings of captions.

        Raises:
            ValueError: a caption is neither in the dataset nor the null caption.
        """
        return CaptionEmbeddings.cat(
            [
                self.null() if caption == self.null_caption else _read_stored(self.dataset_dir, caption)
                for caption in captions
            ]
        )

    def null(self) -> CaptionEmbeddings:
        """The embeddings of the null caption, with which samples are trained whose caption is dropped."""
        return _read_null(self.dataset_dir / NULL_CAPTION_NAME)


@lru_cache(maxsize=4)
def _read_null(path: Path) -> CaptionEmbeddings:
    return read_embeddings([path.read_bytes()])


@lru_cache(maxsize=64)
def _read_stored(dataset_dir: Path, caption: str) -> CaptionEmbeddings:
    """The embeddings of a caption, from the first clip that has it."""
    index, reader = read_index(dataset_dir), PayloadReader(dataset_dir, verify=True)
    number = next((number for number, text in enumerate(index.each("caption")) if text == caption), None)
    if number is None:
        raise ValueError(f"no clip of {dataset_dir} has the caption {caption!r}")
    embeddings = read_embeddings([reader.read(index[number])])
    reader.close()
    return embeddings


def store_null_caption(dataset_dir: Path, config: TextEncoderConfig, null_caption: str) -> TextEncoderRecord:
    """Publish the embeddings of the null caption; returns the record of the dataset's text encoder.

    Raises:
        TextEncoderError: the encoder cannot be used.
    """
    device = torch.device("cpu")
    prepare_to_compute(device)
    encoder = PretrainedTextEncoder(config.folder, config.max_tokens, device)
    (tensors,) = text_tensors(encoder([null_caption]))
    publish_bytes(dataset_dir / NULL_CAPTION_NAME, save(tensors))
    return TextEncoderRecord(
        folder=str(config.folder),
        fingerprint=text_encoder_fingerprint(config.folder),
        max_tokens=config.max_tokens,
        width=encoder.width,
    )


def check_same_encoder(record: TextEncoderRecord, folder: Path) -> None:
    """Check that a folder holds the text encoder that a network was trained with.

    Raises:
        TextEncoderError: it holds another one, or none that can be used.
    """
    try:
        check_text_encoder(folder)
    except TextEncoderError as error:
        raise TextEncoderError(
            f"{error}; the network was trained with the text encoder {record.folder}: set sample.text_encoder to its "
            "present folder"
        ) from error
    found = text_encoder_fingerprint(folder)
    if found != record.fingerprint:
        raise TextEncoderError(
            f"{folder} is another text encoder than the network was trained with (fingerprint {found}, not "
            f"{record.fingerprint}); set sample.text_encoder to a copy of {record.folder}"
        )
