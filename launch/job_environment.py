"""Variables of a job by their names: values are on the cluster's machines, and never travel through Ray.

Whatever is part of a job (its entry point, its `runtime_env`, its metadata) is shown by the dashboard. So a job names
variables that have to be set on the cluster, or a file there that holds them.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from data.errors import ReelflowError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Names the dashboard's address here, where commands are given; Ray's own commands read it too."""
FILE_VARIABLE = "REELFLOW_ENV_FILE"
"""Names the file for the workers of a job."""
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class JobEnvironmentError(ReelflowError, ValueError):
    """Variables that a job needs are not there; the message names them, never their values."""


def check_is_name(text: str) -> str:
    """The name of a variable.

    Raises:
        JobEnvironmentError: it is none, such as NAME=VALUE; the message does not show it, because it may be a secret.
    """
    if _NAME.fullmatch(text) is None:
        name = text.partition("=")[0]
        shown = f"{name}=..." if _NAME.fullmatch(name) and "=" in text else "what was given"
        raise JobEnvironmentError(
            f"--env {shown}: give the name of a variable alone; its value is set on the cluster's machines, or in the "
            "file there that --env-file names, because Ray's dashboard shows what is sent with a job"
        )
    return text


def check_names(names: Collection[str], environment: Mapping[str, str]) -> None:
    """Refuse to start without variables.

    Raises:
        JobEnvironmentError: names those that are missing.
    """
    missing = [name for name in names if name not in environment]
    if missing:
        raise JobEnvironmentError(
            f"{', '.join(missing)} must be set on the cluster's machines before `ray start`, or in the file that "
            "--env-file names"
        )


def read_environment_file(path: Path) -> dict[str, str]:
    """The variables of a file of NAME=VALUE lines; comments begin with #, and values may be in quotes.

    Raises:
        JobEnvironmentError: it cannot be read, or a line is none; the message does not show the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JobEnvironmentError(f"--env-file {path} cannot be read on {os.uname().nodename}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if (parts := _LINE.fullmatch(text)) is None:
            raise JobEnvironmentError(f"--env-file {path}: line {number} is not NAME=VALUE")
        value = parts[2].strip()
        found[parts[1]] = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return found


def load_in_worker() -> None:
    """Set the variables of the job's file in this process; Ray calls it where a worker starts."""
    if name := os.environ.get(FILE_VARIABLE):
        os.environ.update(read_environment_file(Path(name)))
