"""A small text encoder in the layout of a model hub, with random weights; nothing is downloaded."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

WORDS = (
    *("a", "red", "green", "blue", "yellow", "circle", "square", "triangle", "star"),
    *("moves", "left", "right", "up", "down"),
)
WIDTH = 24


def write_tokenizer(folder: Path) -> int:
    """A tokenizer whose vocabulary has the words of the synthetic captions; returns the size of the vocabulary."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return len(vocabulary)


def write_text_encoder(folder: Path, seed: int = 0) -> Path:
    """A T5 encoder with random weights, and that tokenizer."""
    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=size, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    T5EncoderModel(config).save_pretrained(folder)
    return folder
