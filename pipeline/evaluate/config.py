"""Settings of the evaluate stage."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from data.records import AddedLater, Runtime, Settings


class EvaluateConfig(Settings):
    """What is measured."""

    max_reconstructions: int = Field(default=64, ge=1)
    """The reconstruction error of the autoencoder is averaged over at most this many clips of the validation split."""
    judge_clips: int = Field(default=192, ge=1)
    """Number of newly drawn synthetic clips on which the judge of prompt adherence is validated."""
    prompts_per_combination: int = Field(default=6, ge=1)
    """Number of clips sampled for each combination of colour, shape and direction that is held out of training; only
    for synthetic videos, and without a prompts file.
    """
    compared_clips: Annotated[int, AddedLater(512)] = Field(default=512, ge=4)
    """Samples are compared with at most this many clips of the training split; of real videos, also at most this many
    samples of each guidance scale are.
    """
    clip_features: Annotated[Path | None, Runtime] = None
    """TorchScript file of a network for clips, such as I3D, for distances of samples from training clips. None takes
    random convolutions, whose distances cannot be compared with those of publications. Figures depend on what the file
    holds, not on where it is.
    """
    frame_features: Annotated[Path | None, Runtime] = None
    """TorchScript file of a network for frames, such as Inception, likewise."""
    text_similarity: Annotated[Path | None, Runtime] = None
    """Folder of a CLIP model, for the similarity of samples to their prompts. None: it is not measured."""
