"""Where weights come from: the data, the code and the earlier checkpoints they were trained from."""

from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from data.dataset.index_places import INDEX_NAME
from data.files.checksums import file_sha256
from pipeline.checkpoint.record import Checkpoint, Provenance

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "models", "pipeline", "launch")


@lru_cache(maxsize=1)
def code_fingerprint() -> str:
    """A hash of the source files; a cluster gets these without the git history."""
    digest = sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def provenance(dataset_dir: Path, before: Checkpoint | None) -> Provenance:
    """Where the checkpoints of a training come from.

    Args:
        before: the checkpoint it resumed from; None: it started anew.
    """
    earlier = before.record.provenance.lineage if before is not None and before.record.provenance is not None else []
    return Provenance(
        dataset=file_sha256(dataset_dir / INDEX_NAME),
        code=code_fingerprint(),
        versions={name: version(name) for name in ("torch", "deepspeed")},
        lineage=[*earlier, *([before.fingerprint] if before is not None else [])],
    )
