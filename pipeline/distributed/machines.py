"""Whether the machines of a cluster see a folder of this one."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.errors import ReelflowError
from data.files.publish import TEMPORARY_PREFIX
from pipeline.distributed.config import WorkersConfig

LOOK_SECONDS = 5.0
"""A client of a network file system may show a new file so much later."""
ANSWER_SECONDS = 60.0
"""A machine that does not answer within this time has no say; the loss of hosts is noticed elsewhere."""


class NotSharedError(ReelflowError, RuntimeError):
    """A machine of the cluster does not see a folder that all have to share; the message names both."""


def other_machines(workers: WorkersConfig) -> dict[str, str]:
    """The machines of the connected cluster that may get workers, without this one: names by the ids of their nodes."""
    own = ray.get_runtime_context().get_node_id()
    return {
        node["NodeID"]: node["NodeManagerHostname"]
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != own
        and node["Resources"].get("CPU", 0) >= workers.cpus_per_worker
        and node["Resources"].get("GPU", 0) >= min(1, workers.gpus_per_worker)
    }


def check_shared(folder: Path, workers: WorkersConfig) -> None:
    """Refuse a cluster of which a machine that may get workers does not see a folder of this one.

    Raises:
        NotSharedError: names the machines.
    """
    others = other_machines(workers)
    if not others:
        return
    look: Any = ray.remote(_is_seen)
    with _marker(folder.resolve()) as marker:
        asked = {
            look.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(marker): name
            for node, name in others.items()
        }
        answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
        blind = sorted(asked[reference] for reference in answered if not _answer(reference))
    if blind:
        named = ", ".join(blind[:4]) + (f" and {len(blind) - 4} more" if len(blind) > 4 else "")
        raise NotSharedError(
            f"{folder.resolve()} is not shared: {named} {'does' if len(blind) == 1 else 'do'} not see it. Set runs_dir "
            "to a folder on a file system that all machines have mounted at the same path; or, where there is none, "
            "set store to an object store and cluster.shared_folder to false (docs/guides/cluster.md)"
        )


@contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    marker = folder / f"{TEMPORARY_PREFIX}seen-{uuid.uuid4().hex[:12]}"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def _is_seen(marker: Path) -> bool:
    until = time.monotonic() + LOOK_SECONDS
    while not marker.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _answer(reference: Any) -> bool:  # noqa: ANN401 - Ray's
    try:
        return bool(ray.get(reference))
    except RayError:  # the machine was lost meanwhile
        return True
