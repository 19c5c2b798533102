"""Another machine of a run, in this process."""

from dataclasses import dataclass
from typing import Any

from pipeline.distributed.stored_files import StoredFiles


@dataclass(frozen=True)
class OtherMachine(StoredFiles):
    """The files of a run as another machine reaches them; it asks the object itself, without Ray."""

    whole: Any = None
    """A `WholeRun`."""

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any method
        return getattr(self.whole, method)(*arguments, **options)
