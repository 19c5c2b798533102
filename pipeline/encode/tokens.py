"""The trained tokeniser as one file."""

import json
from functools import lru_cache
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from data.files.publish import published
from models.meta import on_meta_device
from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer
from pipeline.checkpoint.adapters import network_weights
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.encode.codec import damage_named

TOKENIZER_NAME = "tokenizer.safetensors"


def export_tokenizer(checkpoint: Checkpoint, path: Path) -> None:
    """Write the averaged weights and the configuration of a tokeniser to one safetensors file.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another network.
    """
    if checkpoint.record.kind != "tokenizer":
        raise CheckpointError(f"{checkpoint.folder} holds a {checkpoint.record.kind}, and a tokenizer is needed")
    config = checkpoint.trained("model", TokenizerConfig.model_validate)
    weights = dict(network_weights(checkpoint))
    with published(path) as temporary:
        save_file(weights, temporary, metadata={"config": config.model_dump_json()})


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a file that `export_tokenizer` wrote, in evaluation mode, without gradients, on the CPU.

    Raises:
        CheckpointError: the file is missing or damaged, or holds another network than it says.
    """
    with damage_named(path, "tokeniser"), safe_open(path, framework="pt") as file:
        config = TokenizerConfig.model_validate(json.loads((file.metadata() or {})["config"]))
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
    last = weights.get(f"after.{0 if config.depth == 0 else config.depth + 1}.bias")
    channels = 1 if last is None else len(last)
    with on_meta_device():
        expected = {name: weight.shape for name, weight in Tokenizer(config, channels).state_dict().items()}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        raise CheckpointError(f"{path} is damaged: its weights are not those of the tokeniser it describes")
    tokenizer = Tokenizer(config, channels)
    tokenizer.load_state_dict(weights)
    return tokenizer.eval().requires_grad_(False)


@lru_cache(maxsize=2)
def shared_tokenizer(path: Path) -> Tokenizer:
    """As `load_tokenizer`, once for each process: readers use it for every batch."""
    return load_tokenizer(path)
