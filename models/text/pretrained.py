"""A frozen, pretrained text encoder from a folder on this machine: T5, UMT5, BERT and similar ones.

The folder is what `save_pretrained` writes, or a copy of a model repository: `config.json`, the
tokenizer's files and safetensors. Nothing is downloaded, no code of the folder is run, and pickled weights are refused.
Large video models are conditioned this way (T5 in Saharia et al. 2022, "Imagen", section 2.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.errors import ReelflowError, first_line
from models.published import folders_fingerprint
from models.text.embeddings import CaptionEmbeddings

STORED_DTYPE = torch.float16  # eleven bits of each number, where bfloat16 has eight; checked to be finite
CONFIG_NAME = "config.json"
WEIGHTS_PATTERN = "*.safetensors"
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.txt")


class TextEncoderError(ReelflowError, ValueError):
    """A text encoder that cannot be used; the message names the folder and the way out."""

    retryable = True  # one rank alone meets it


def check_text_encoder(folder: Path) -> None:
    """Check everything that does not need the weights.

    Raises:
        TextEncoderError: transformers is not installed, or the folder is not one of safetensors and a tokenizer.
    """
    try:
        import transformers  # noqa: F401 - the extra `text`
    except ImportError as error:
        raise TextEncoderError(
            "a pretrained text encoder needs the package transformers; install the extra: pip install 'reelflow[text]'"
        ) from error
    if not (folder / CONFIG_NAME).is_file():
        raise TextEncoderError(
            f"{folder} is not the folder of a text encoder: it holds no {CONFIG_NAME}; copy a model's repository there"
        )
    if not any(folder.glob(WEIGHTS_PATTERN)):
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        found = f"only pickled weights ({pickles}), which could run code" if pickles else "no weights"
        raise TextEncoderError(f"{folder} holds {found}; save the model with safe_serialization=True")


def tokenizer_folder(folder: Path) -> Path:
    """Where a text encoder's tokenizer is: its own folder, or `tokenizer` beside it, as in published pipelines."""
    beside = folder.parent / "tokenizer"
    has_own = any((folder / name).is_file() for name in TOKENIZER_NAMES)
    return beside if not has_own and beside.is_dir() else folder


def text_encoder_fingerprint(folder: Path) -> str:
    """Changes with the weights, the tokenizer or the configuration: with every file but hidden ones and documents."""
    return folders_fingerprint(folder, tokenizer_folder(folder))


def token_lengths(folder: Path, captions: Sequence[str]) -> list[int]:
    """The number of tokens of each caption, before it is cut; the weights are not loaded.

    Raises:
        TextEncoderError: the folder cannot be loaded.
    """
    return _lengths(_load_tokenizer(folder), captions)


def read_embedding_width(folder: Path) -> int:
    """Channels of the embeddings; the weights are not loaded.

    Raises:
        TextEncoderError: the folder cannot be loaded.
    """
    check_text_encoder(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().hidden_size)
    except Exception as error:  # of any class, as for the tokenizer
        raise _refusal(folder, error) from error


def _lengths(tokenizer: Any, captions: Sequence[str]) -> list[int]:  # noqa: ANN401 - of transformers
    return [len(ids) for ids in tokenizer(list(captions))["input_ids"]] if captions else []


def _load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - of transformers
    check_text_encoder(folder)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            tokenizer_folder(folder),
            local_files_only=True,
            trust_remote_code=False,
            padding_side="right",
            truncation_side="right",
        )
    except Exception as error:  # of any class, by what is wrong in which file: the tokenizer's own is Exception itself
        raise _refusal(folder, error) from error


def _refusal(folder: Path, error: Exception) -> TextEncoderError:
    """The error for a folder that transformers cannot load: its name, and the first line of the reason."""
    kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
    way_out = "install what is missing" if isinstance(error, ImportError) else "copy it again, whole"
    return TextEncoderError(
        f"{folder} cannot be loaded as a text encoder: {kind}{first_line(error).rstrip('.')}; {way_out}"
    )


@dataclass(frozen=True)
class _Tokens:
    """A padded batch, and how many tokens each caption had before it was cut."""

    ids: Tensor  # b n
    mask: Bool[Tensor, "b n"]
    lengths: list[int]


class PretrainedTextEncoder:
    """Captions to one vector per token.

    Args:
        max_tokens: captions are cut there, and padded to it: a caption gives the same numbers in any batch.

    Raises:
        TextEncoderError: the folder cannot be loaded, or lacks weights.
    """

    def __init__(self, folder: Path, max_tokens: int, device: torch.device) -> None:
        self._tokenizer = _load_tokenizer(folder)
        from transformers import AutoModelForTextEncoding
        from transformers.utils import logging

        logging.disable_progress_bar()

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        try:
            model, loaded = AutoModelForTextEncoding.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=dtype,
            )
        except Exception as error:  # as for the tokenizer: weights that are cut short or of another shape, bad settings
            raise _refusal(folder, error) from error
        if loaded["missing_keys"]:
            names = ", ".join(sorted(loaded["missing_keys"])[:3])
            raise TextEncoderError(
                f"{folder} lacks weights that its {CONFIG_NAME} promises ({names}); copy it again, whole"
            )
        if self._tokenizer.pad_token_id is None:
            raise TextEncoderError(f"{folder}: its tokenizer has no padding token; give it one and save it again")
        if not self._tokenizer("")["input_ids"]:
            raise TextEncoderError(
                f"{folder}: its tokenizer gives the empty caption no token to look at; give it an end token"
            )
        self._folder, self._max_tokens, self._device = folder, max_tokens, device
        self._model: Any = model.to(device).eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self._model.config.hidden_size

    def num_truncated(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        return sum(length > self._max_tokens for length in self._tokenize(captions).lengths)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> CaptionEmbeddings:
        """Embed; vectors at padding are zero, the others rounded as they are stored.

        Raises:
            TextEncoderError: an embedding does not fit 16-bit numbers.
        """
        tokens = self._tokenize(captions)
        states = self._model(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state  # b n e
        rounded: Float[Tensor, "b n e"] = torch.where(tokens.mask[..., None], states.float(), 0.0).to(STORED_DTYPE)
        if not rounded.isfinite().all():
            raise TextEncoderError(f"{self._folder} gives embeddings beyond 65504, which 16-bit numbers cannot hold")
        return CaptionEmbeddings(rounded.float(), tokens.mask)

    def _tokenize(self, captions: Sequence[str]) -> _Tokens:
        lengths = _lengths(self._tokenizer, captions)
        padded = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        return _Tokens(padded["input_ids"].to(self._device), padded["attention_mask"].bool().to(self._device), lengths)
