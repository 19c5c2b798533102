"""Weights & Biases, an optional sink: the same numbers and clips as in TensorBoard."""

import io
import uuid
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.errors import ReelflowError
from data.files.publish import publish_text
from pipeline.distributed.collectives import from_rank_zero

ID_NAME = "wandb_id"


class WandbError(ReelflowError, RuntimeError):
    """W&B is configured and cannot be used; the message says what to do."""


class WandbSink:
    """One W&B run per training: its id is stored in the training's folder, so every start continues the same run."""

    def __init__(self, project: str, run_dir: Path) -> None:
        self._wandb = _import_wandb()
        id_path = run_dir / ID_NAME
        if not id_path.is_file():
            publish_text(id_path, uuid.uuid4().hex[:12])
        self._run = self._wandb.init(
            project=project,
            id=id_path.read_text(encoding="utf-8").strip(),
            name=f"{run_dir.parent.name}/{run_dir.name}",
            dir=run_dir,
            resume="allow",
        )
        # W&B's own step counter never decreases, but steps are repeated when a training resumes from a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add_scalars(self, step: int, values: dict[str, float]) -> None:
        """A point on each curve."""
        self._run.log({"step": step, **values})

    def add_video(self, step: int, name: str, gif: bytes, shape: tuple[int, ...]) -> None:  # noqa: ARG002 - in the GIF
        """A video."""
        self._run.log({"step": step, name: self._wandb.Video(io.BytesIO(gif), format="gif")})

    def close(self) -> None:
        """Wait until everything has been sent."""
        self._run.finish()


def start_wandb(project: str | None, run_dir: Path, rank: int) -> WandbSink | None:
    """The sink on rank 0; None on the other ranks, and everywhere if no project is configured. Collective.

    Raises:
        WandbError: on every rank: the package is missing, or W&B refuses to start.
    """
    if project is None:
        return None
    sink, problem = _try_to_start(project, run_dir) if rank == 0 else (None, None)
    if (problem := from_rank_zero(problem)) is not None:
        raise WandbError(problem)
    return sink


def _try_to_start(project: str, run_dir: Path) -> tuple[WandbSink | None, str | None]:
    """The sink, or the reason why there is none."""
    if find_spec("wandb") is None:
        return None, (
            f"train.wandb_project is {project!r}, but the package wandb is not installed: "
            "run pip install 'reelflow[wandb]', or leave train.wandb_project out"
        )
    try:
        return WandbSink(project, run_dir), None
    except _import_wandb().Error as error:
        return None, (
            f"train.wandb_project is {project!r}, but W&B cannot start: {error}. Log in with `wandb login`, set "
            "WANDB_MODE=offline to write to the run's folder only, or leave train.wandb_project out"
        )


def _import_wandb() -> Any:  # noqa: ANN401 - an optional package
    return import_module("wandb")
