"""Names of the weights that a checkpoint holds."""

from typing import Annotated

from pydantic import AfterValidator

WeightsName = str
"""`MASTER`, `FIRST_AVERAGE`, or the name of an average such as "decay-0.999"."""
MASTER = "master"
"""The weights that AdamW updates, not averaged."""
FIRST_AVERAGE = "ema"
"""The first average, whatever its profile."""
MASTER_IN_VALIDATION = "raw"
"""What configurations and lines of validation.jsonl have always called the master weights."""


def _stored_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they are stored: "master" is read, but stored as "raw"."""
    return tuple(MASTER_IN_VALIDATION if name == MASTER else name for name in names)


ValidatedWeights = Annotated[tuple[WeightsName, ...], AfterValidator(_stored_names)]
"""Weights to validate, in a configuration; "master" and "raw" mean the same."""
