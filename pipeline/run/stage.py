"""What a stage is: its name, folder, needs and inputs, what can be reused, its line in the plan, and how it runs.

`launch/stages.py` lists every stage in order; the command line, the plan, the report and `submit` read that list. The
module of a stage imports what does its work inside its methods, so that a plan is printed without loading torch or Ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.stage_record import OpenStage, read_stage_record


@dataclass(frozen=True)
class Outcome:
    """What a finished stage made."""

    outputs: list[Path]
    """Files that must exist for the stage to count as complete."""
    summary: dict[str, Any]
    """A few figures, shown on the console and kept in the stage's record and the report."""


class Stage(ABC):
    """One step of a run. It is skipped while its inputs are those that its folder was made from."""

    name: ClassVar[str]
    """As on the command line, such as "train dit"."""
    folder: ClassVar[str]
    """In the run's folder."""
    needs: ClassVar[Mapping[str, Need]] = {}
    """Folders that it is made from -> what it reads of each."""
    remove_temporary: ClassVar[bool] = True
    """Remove files of interrupted writers when it starts; False where other processes may be writing there."""

    @abstractmethod
    def describe(self) -> str:
        """Its line in the plan."""

    def is_needed(self) -> bool:
        """Whether this run has the stage at all."""
        return True

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Refuse, before any stage runs, what is known to fail."""

    @abstractmethod
    def settings(self, run: RunContext) -> dict[str, Any]:
        """What the output depends on beside the folders it `needs`: JSON values.

        Raises:
            ReelflowError: an input of the user cannot be used.
        """

    def inputs(self, run: RunContext) -> dict[str, Any]:
        """Everything the output depends on: the contents of the folders it `needs`, then its `settings`.

        Raises:
            StageOrderError: a stage that it needs has not finished, or is out of date.
        """
        record = read_stage_record(run.folder_of(self))
        named = {} if record is None else record.inputs
        required = {
            folder: run.content_of(folder, need, named.get(folder)) for folder, need in self.required_folders().items()
        }
        return required | self.settings(run)

    def required_folders(self) -> Mapping[str, Need]:
        """Those that it `needs` with its present settings."""
        return self.needs

    def contents(self, folder: Path) -> dict[str, str]:  # noqa: ARG002 - for those that override it
        """What other stages may need of its finished folder: a fingerprint by name, equal where the content is equal.

        Raises:
            ReelflowError, OSError: the folder is damaged.
        """
        return {}

    def continues(self) -> dict[str, Any]:
        """Settings whose change makes a complete output unfinished, not wrong: how many steps to train."""
        return {}

    def describe_reuse(self, run: RunContext) -> Callable[[], str | None] | None:  # noqa: ARG002 - for those that override it
        """Says what in the folder the present inputs would use again; None, as its answer or itself: nothing."""
        return None

    def is_whole(self, output: Path) -> bool:
        """Whether one of its outputs is there; False makes a complete stage continue."""
        return output.exists()

    def check_inputs(self, run: RunContext) -> None:  # noqa: B027 - most inputs are settings, checked when they are read
        """Refuse, before anything changes, inputs that cannot be used."""

    def check_continues(self, run: RunContext) -> None:  # noqa: B027 - most can always continue
        """Refuse, before anything changes, to continue a folder that lacks what its work goes on from."""

    @abstractmethod
    def execute(self, run: RunContext) -> None:
        """Run the stage if its inputs changed or it is not complete."""


class DriverStage(Stage):
    """A stage whose work the driver directs; trainings, which their workers direct, are `TrainStage`."""

    def execute(self, run: RunContext) -> None:
        """Open the folder, make the output, and close the folder."""
        if not self.is_needed():
            return
        with run.opened(self, self.inputs(run)) as opened:
            if opened is not None:
                outcome = self.make(run, opened)
                opened.finish(outcome.outputs, outcome.summary, run.peak_rss_bytes(), self.contents(opened.folder))

    @abstractmethod
    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Make the output in `opened.folder`."""
