"""A connection to the job API of a cluster, with everything checked that can be before a job starts."""

import logging
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from data.errors import first_line
from launch.cluster import ClusterError
from launch.job_environment import ADDRESS_VARIABLE, DEFAULT_ADDRESS
from launch.overrides import ConfigError
from pipeline.distributed.config import WorkersConfig

CONNECT_SECONDS, ANSWER_SECONDS = 3, 6
CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that would tell of each upload and of each end of a log."""
NOT_OF_RAY = (requests.RequestException, ConnectionError, LookupError, TypeError, ValueError)
"""What Ray's client raises where an answer is missing or lacks the fields of Ray's."""
_ON_THE_HEAD = "`ray get-auth-token` prints it on the head node; set RAY_AUTH_TOKEN to it"


class TokenError(ClusterError):
    """The cluster asks for a token that is not here, or for none at all."""


@dataclass(frozen=True)
class EntryResources:
    """What the driver of a job takes of the cluster, beside its workers."""

    cpus: float = 0
    gpus: float = 0
    memory_bytes: int = 0


def connect(address: str) -> JobSubmissionClient:
    """A client for the job API, with the token that Ray's own commands would use.

    Raises:
        ConfigError: the address is no http address.
        TokenError: the cluster refuses the token, or there is none here.
        ClusterError: no cluster answers, or one of another version of Ray.
    """
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    headers = authorization(address)
    try:
        client = JobSubmissionClient(address, headers=headers or None)
    except AuthenticationError as error:
        raise TokenError(f"the cluster at {address} refuses the token that was found here: {_ON_THE_HEAD}") from error
    except (*NOT_OF_RAY, RuntimeError) as error:
        raise _no_dashboard(address, first_line(error)) from error
    _check_version(address, headers)
    return client


def command(text: str, address: str) -> str:
    """A command of ours for a message, such as "job stop X", with the address where it would not be found without."""
    usual = os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    return f"`reelflow {text}`" if address == usual else f"`reelflow {text} --address {shlex.quote(address)}`"


def authorization(address: str) -> dict[str, str]:
    """The headers that the cluster wants.

    Raises:
        ConfigError, TokenError, ClusterError: as `connect`.
    """
    if not re.match(r"^https?://", address):
        raise ConfigError(f"--address {address}: the job API is an http address, such as http://127.0.0.1:8265")
    return {"Authorization": f"Bearer {_token(address)}"} if asks_for_token(address) else {}


def asks_for_token(address: str) -> bool:
    """Whether the cluster refuses requests without a token.

    Raises:
        ClusterError: nothing answers at the address, or another program than Ray.
    """
    answer = _answer(address, "/api/jobs/")
    if answer.status_code in (401, 403):
        return True
    if answer.status_code == 200 and _is_ray(_answer(address, "/api/version")):
        return False
    raise _no_dashboard(address, f"what answers there, with status {answer.status_code}, is another program")


def check_room(address: str, workers: WorkersConfig, entry: EntryResources) -> None:
    """Refuse a job whose workers the cluster has no room for, however long it waits.

    Raises:
        ClusterError: names what is missing, and the way out.
    """
    nodes = _nodes(address)
    wanted = {
        "CPU": (workers.num_required * workers.cpus_per_worker, entry.cpus),
        "GPU": (workers.num_required * workers.gpus_per_worker, entry.gpus),
        "memory": (0, entry.memory_bytes),
    }
    for resource, (of_workers, of_entry) in wanted.items():
        there = sum(node.get(resource, 0) for node in nodes)
        largest = max((node.get(resource, 0) for node in nodes), default=0)
        if of_entry > largest:
            raise ClusterError(
                f"the driver asks for {of_entry:g} {resource}, but no machine of the cluster at {address} has more "
                f"than {largest:g}; lower --entry-{resource.lower()}{'s' if resource != 'memory' else ''}, or give "
                "--wait-for-nodes if larger ones will join"
            )
        if of_workers + of_entry > there:
            field = "num_workers" if workers.min_workers is None else "min_workers"
            raise ClusterError(
                f"{workers.num_required} workers and the driver need {of_workers + of_entry:g} {resource}, but the "
                f"cluster at {address} has {there:g}; lower cluster.workers.{field}, add machines, or give "
                "--wait-for-nodes if they will join"
            )


def num_nodes(address: str) -> int:
    """How many machines have joined the cluster; errors as `connect`."""
    return len(_nodes(address))


def _nodes(address: str) -> list[Mapping[str, float]]:
    """The resources of each machine that is alive."""
    answer = _answer(address, "/api/v0/nodes?detail=1&limit=10000", authorization(address))
    try:
        rows = answer.json()["data"]["result"]["result"]
        return [row["resources_total"] for row in rows if row["state"] == "ALIVE"]
    except NOT_OF_RAY as error:
        raise ClusterError(
            f"the cluster at {address} does not say what its machines have ({first_line(error)}); give --wait-for-nodes"
            " to submit without that check"
        ) from error


def _check_version(address: str, headers: Mapping[str, str]) -> None:
    answer = _answer(address, "/api/version", headers)
    there = str(answer.json()["ray_version"]) if _is_ray(answer) else "unknown"
    if there.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise ClusterError(
            f"the cluster at {address} runs Ray {there}, and this is Ray {ray.__version__}, which do not understand "
            f"each other: install ray=={there} here, or {ray.__version__} on the cluster's machines"
        )


def _no_dashboard(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"no Ray dashboard answers at {address} ({reason}); give the right one by --address or {ADDRESS_VARIABLE}, or "
        "start the cluster with `RAY_AUTH_MODE=token ray start --head` on its head node; if that is another machine, "
        "forward the port: `ssh -L 8265:127.0.0.1:8265 HEAD`"
    )


def _reason(error: Exception) -> str:
    """Why there was no answer, out of what requests and urllib3 wrapped around it."""
    inner = error.args[0] if error.args else error
    return str(getattr(inner, "reason", None) or inner).rpartition(": ")[2] or first_line(error)


def _answer(address: str, path: str, headers: Mapping[str, str] | None = None) -> requests.Response:
    timeout = (CONNECT_SECONDS, ANSWER_SECONDS)
    try:
        return requests.get(address.rstrip("/") + path, headers=headers, timeout=timeout, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:  # the latter of an address such as http://[::1
        raise _no_dashboard(address, _reason(error)) from error


def _is_ray(answer: requests.Response) -> bool:
    """Whether an answer to the question for the version is one of Ray."""
    try:
        fields: Any = answer.json()
    except ValueError:
        return False
    return isinstance(fields, dict) and isinstance(fields.get("ray_version"), str)


def _token(address: str) -> str:
    """The token that Ray's own commands would use: of RAY_AUTH_TOKEN, of a file, or of this user."""
    place, token = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        place, token = str(path), _token_of_file(address, path)
    if not token.isascii() or not token.isprintable() or " " in token:  # the message must not show it
        raise TokenError(
            f"what {place} holds is no token, with white space or a special character in it: {_ON_THE_HEAD}"
        )
    return token


def _token_of_file(address: str, path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise TokenError(f"{path} holds no token, since it is not UTF-8 text: {_ON_THE_HEAD}") from error
    except OSError:
        token = ""
    if not token:
        raise TokenError(
            f"the cluster at {address} asks for a token, and there is none in RAY_AUTH_TOKEN or {path}: {_ON_THE_HEAD}"
        )
    return token
