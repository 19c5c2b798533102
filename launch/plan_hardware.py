"""The machines that a plan is for, as given on the command line."""

import re
from dataclasses import dataclass

from launch.overrides import ConfigError

UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20, "TB": 10**12, "TiB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", re.IGNORECASE)
CONTEXT_BYTES = 2**30
"""What CUDA and NCCL take on a GPU before the first tensor."""
USABLE_SHARE = 0.95
"""Of the rest: the allocator cannot use the gaps between tensors."""
DEFAULT_UTILISATION = 0.35


@dataclass(frozen=True)
class Hardware:
    """GPUs of one kind."""

    num_gpus: int
    memory_bytes: int
    """Of one GPU."""
    peak_flops: float
    """Operations per second of one GPU in bfloat16, as in its data sheet."""
    utilisation: float | None = None
    """Share of the peak that a training reaches, in (0, 1]; None: as measured, or `DEFAULT_UTILISATION`."""
    price: float | None = None
    """Of one GPU for an hour, in any currency."""

    @property
    def usable_bytes(self) -> int:
        """Memory of one GPU that tensors can have."""
        return int((self.memory_bytes - CONTEXT_BYTES) * USABLE_SHARE)


def parse_size(text: str, option: str = "--gpu-memory") -> int:
    """Bytes of a size such as "80GiB".

    Raises:
        ConfigError: it is none; names the units.
    """
    found = _SIZE.fullmatch(text.strip())
    by_lower = {unit.lower(): factor for unit, factor in UNITS.items()}
    if found is None or found[2].lower() not in by_lower:
        raise ConfigError(f"{option} {text}: write a number and a unit ({', '.join(UNITS)}), such as 80GiB")
    return int(float(found[1]) * by_lower[found[2].lower()])


def parse_peak(gpu: str) -> float:
    """Operations per second of a GPU by its name, or of a number of teraflops.

    Raises:
        ConfigError: the GPU is not known.
    """
    from pipeline.train.monitor.throughput import PEAK_FLOPS, peak_flops_per_second

    try:
        peak = float(gpu) * 1e12
    except ValueError:
        peak = peak_flops_per_second(gpu)
    if peak is None or not 0 < peak < 1e18:
        names = ", ".join(name for name, _ in PEAK_FLOPS)
        raise ConfigError(f"--gpu {gpu}: give one of {names}, or the teraflops of its data sheet, such as 989")
    return peak
