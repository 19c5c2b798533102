"""Entry point: `python -m launch ...`, or `reelflow ...` once installed."""

import importlib
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "data", "pipeline", "launch")


def main() -> None:
    """Check that our packages are the ones on the path, then run the command."""
    _refuse_shadowed_packages()
    from launch.commands import app  # imports those packages

    app(prog_name="reelflow")


def _refuse_shadowed_packages() -> None:
    """`models` and `data` are common names: exit with a message where another project's packages come first."""
    for name in PACKAGES:
        package = importlib.import_module(name)
        location = Path(package.__file__ or "").resolve().parent
        if location.parent != PROJECT_DIR:
            sys.exit(
                f"error: the package {name!r} was imported from {location}, not from {PROJECT_DIR}.\n"
                f"Another package of that name comes first; run `python -m launch` from {PROJECT_DIR}, "
                f"or take the other folder off PYTHONPATH."
            )


if __name__ == "__main__":
    main()
