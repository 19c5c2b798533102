"""What the ranks of a training read, on machines that share no folder."""

import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.distributed.process_group import Worker
from pipeline.run.objects import StoredRunError
from pipeline.run.shared_files import RunFiles
from pipeline.train.control import SAVE_NAME, STOP_NAME


@contextmanager
def local_copies(files: RunFiles, dataset_dir: Path, run_dir: Path, worker: Worker) -> Iterator[RunFiles]:
    """Have the dataset and the training's folder on each machine, and give the run what is written there. Collective.

    Each machine gets the whole dataset, or parts of its shards as they are read, and every checkpoint that is kept.

    Raises:
        StoredRunError: on every rank, if a machine cannot fetch what it needs.
    """
    if files.is_shared:
        yield files
        return
    files = files.of_start(from_rank_zero(uuid.uuid4().hex))
    problem = None
    if worker.rank == 0:
        files.begin(run_dir)
    from_rank_zero(None)  # nothing of an earlier start comes to the run from here on
    with ExitStack() as stack:
        try:
            if worker.local_rank == 0:
                files.fetch_dataset(dataset_dir)
                stack.enter_context(files.kept_alike(run_dir, (SAVE_NAME, STOP_NAME)))
        except StoredRunError as error:
            problem = f"{error} (on {socket.gethostname()})"
        if problems := from_every_rank(problem):
            raise StoredRunError(problems[0])
        yield files
