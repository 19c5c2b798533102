"""Models in folders on this machine, as `save_pretrained` writes them.

Nothing is downloaded, no code of a folder is run, and pickled weights are refused.
"""

import json
from pathlib import Path
from typing import Any

import torch

from data.errors import ReelflowError, first_line


class CurationModelError(ReelflowError, ValueError):
    """A model that cannot be used; the message names its path and the way out."""


def model_type(folder: Path, supported: tuple[str, ...]) -> str:
    """What kind of model a folder holds, after checking everything that does not need the weights.

    Raises:
        CurationModelError: transformers is not installed, or a file is missing, damaged or of another kind of model.
    """
    try:
        import transformers  # noqa: F401 - the extra `text`
    except ImportError as error:
        raise CurationModelError(
            f"{folder} needs the package transformers; install the extra: pip install 'reelflow[text]'"
        ) from error
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CurationModelError(
            f"{folder} is not the folder of a model: its config.json cannot be read ({first_line(error)}); copy a "
            "model's repository there"
        ) from error
    if kind not in supported:
        raise CurationModelError(f"{folder} holds a model of type {kind}; supported are {', '.join(supported)}")
    if not any(folder.glob("*.safetensors")):
        raise CurationModelError(f"{folder} holds no safetensors; save the model with safe_serialization=True")
    return kind


def load_model(library: Any, folder: Path, device: torch.device) -> Any:  # noqa: ANN401 - classes of transformers
    """The model of a folder, in evaluation mode, with constant weights.

    Args:
        library: its class in transformers.

    Raises:
        CurationModelError: it cannot be loaded, or weights are missing.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, loaded = library.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # of any class, by what is wrong in which file
        raise CurationModelError(f"{folder} cannot be loaded: {first_line(error)}; copy it again, whole") from error
    if loaded["missing_keys"]:
        names = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise CurationModelError(
            f"{folder} lacks weights that its config.json promises ({names}); copy it again, whole"
        )
    return model.to(device).eval().requires_grad_(False)


def load_preprocessing(folder: Path) -> tuple[Any, Any]:
    """How pictures are prepared for the model of a folder, and its tokenizer.

    Raises:
        CurationModelError: a file is missing or damaged.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    try:
        return (
            AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
    except Exception as error:  # as for the weights
        raise CurationModelError(
            f"{folder}: its image processor or tokenizer cannot be loaded: {first_line(error)}; copy it again, whole"
        ) from error
