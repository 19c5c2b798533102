"""Weights & Biases, for those who ask for it: the same numbers and clips as in TensorBoard."""

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


def _wandb() -> Any:  # noqa: ANN401 - an optional package
    return import_module("wandb")


class WandbError(ReelflowError, RuntimeError):
    """W&B was asked for and cannot be used; the message says what to do."""


class WandbRun:
    """One run of W&B for one training, however often that is started again."""

    def __init__(self, project: str, run_dir: Path) -> None:
        wandb = _wandb()
        id_path = run_dir / ID_NAME
        if not id_path.is_file():
            publish_text(id_path, uuid.uuid4().hex[:12])
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            id=id_path.read_text(encoding="utf-8").strip(),
            name=f"{run_dir.parent.name}/{run_dir.name}",
            dir=run_dir,
            resume="allow",
        )
        # Steps that are done again after a fallback are drawn again: W&B's own counter never goes back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def show(self, step: int, values: dict[str, float]) -> None:
        """Draw values."""
        self._run.log({"step": step, **values})

    def film(self, step: int, name: str, gif: bytes) -> None:
        """Show a moving picture."""
        self._run.log({"step": step, name: self._wandb.Video(io.BytesIO(gif), format="gif")})

    def close(self) -> None:
        """Finish what is being sent."""
        self._run.finish()


def start_wandb(project: str | None, run_dir: Path, rank: int) -> WandbRun | None:
    """The run, on rank 0; None on the others and where no project is named. Called by all ranks.

    Raises:
        WandbError: on every rank: the package is missing, or W&B refuses to start.
    """
    if project is None:
        return None
    run, problem = _try_to_start(project, run_dir) if rank == 0 else (None, None)
    if (problem := from_rank_zero(problem)) is not None:
        raise WandbError(problem)
    return run


def _try_to_start(project: str, run_dir: Path) -> tuple[WandbRun | None, str | None]:
    if find_spec("wandb") is None:
        return None, (
            f"train.wandb_project is {project!r}, but the package wandb is not installed: "
            "run pip install 'reelflow[wandb]', or leave train.wandb_project out"
        )
    try:
        return WandbRun(project, run_dir), None
    except _wandb().Error as error:
        return None, (
            f"train.wandb_project is {project!r}, but W&B cannot start: {error}. Log in with `wandb login`, set "
            "WANDB_MODE=offline to write to the run's folder alone, or leave train.wandb_project out"
        )
