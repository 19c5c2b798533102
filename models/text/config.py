"""Configuration of the caption encoder. Nothing here loads torch."""

import unicodedata
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data.records import MAX_CHANNELS, AddedLater, Settings
from models.text.splitting import words_of

Normalization = Literal["off", "nfkc_casefold"]


class WordsConfig(Settings):
    """Captions as words, whose vectors are sums of hashed embeddings of their parts (`models/text/words.py`)."""

    max_words: int = Field(default=64, ge=4)
    """Words that are read of a caption; longer ones are truncated. A word of more than 16 letters counts as several."""
    buckets: int = Field(default=8192, ge=64)
    """Rows of the table of embeddings of words and their parts."""


class TextConfig(Settings):
    """Size of the caption encoder that is trained with the network, on bytes or on pretrained embeddings."""

    width: int = Field(default=128, ge=16, le=MAX_CHANNELS)
    """Channels of each encoded caption token."""
    depth: int = Field(default=2, ge=0)
    """Number of transformer blocks."""
    heads: int = Field(default=2, ge=1, le=MAX_CHANNELS)
    """Attention heads of each block; each gets `width` / `heads` channels, which must be a multiple of 8."""
    max_bytes: int = Field(default=96, ge=8)
    """Bytes that are read of a caption (UTF-8); longer ones are truncated. Not used with a pretrained encoder."""
    normalization: Annotated[Normalization, AddedLater("off")] = "off"
    """`nfkc_casefold` reads captions and prompts without upper case and in one form of each character (Unicode NFKC,
    then case folding, as in NFKC_Casefold), so that a prompt's case and ligatures change nothing; `off` reads them as
    they are. Not used with a pretrained encoder, whose tokenizer does this.
    """
    ngram_buckets: int = Field(default=2048, ge=64)
    """Rows of each table of byte n-gram embeddings. Not used with a pretrained encoder."""

    words: Annotated[WordsConfig | None, AddedLater(None)] = None
    """Read captions word by word instead of byte by byte (`words: {}` with the defaults).

    Fewer tokens, and each one means something: a network learns many wordings in fewer steps, and a word with a typing
    error has parts in common with the right one. ASCII punctuation is not read. Not used with a pretrained encoder.
    """

    @model_validator(mode="after")
    def _check(self) -> "TextConfig":
        for name in ("max_bytes", "ngram_buckets") if self.words is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for captions that are read as bytes, and `words` is given: remove {name}")
        return self

    def normalized(self, caption: str) -> str:
        """The caption as the encoder reads it, before it is cut at `max_bytes`."""
        if self.normalization == "off":
            return caption
        return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())

    @property
    def unit(self) -> Literal["bytes", "words"]:
        """What a caption is read in."""
        return "bytes" if self.words is None else "words"

    @property
    def most(self) -> int:
        """How many of them are read of a caption."""
        return self.max_bytes if self.words is None else self.words.max_words

    def units(self, caption: str) -> bytes | list[str]:
        """Those of a normalised caption, before it is cut at `most`."""
        text = self.normalized(caption)
        return text.encode() if self.words is None else words_of(text)
