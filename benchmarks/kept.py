"""What a forward pass keeps for the backward pass, by the function that keeps it: ours beside diffusers.

    python -m benchmarks.kept --tokens 2048

Equal weights and inputs as in `benchmarks.networks`. Each storage counts once, for the function that keeps it first:
a norm is shown with what it reads, although the layer before it made that. Weights are left out.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.networks import GRIDS, Transformers
from data.files.publish import publish_text

RESULT = Path(__file__).parent / "results" / "kept.json"
SOURCES = ("/models/", "/diffusers/")  # of the functions that are named


def kept_bytes(network: nn.Module, forward: Callable[[], object]) -> dict[str, int]:
    """Bytes by the name of the function, most first."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
    found: Counter[str] = Counter()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage
            found[_caller()] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    del output
    return dict(found.most_common())


def _caller() -> str:
    """The innermost function of a network on the stack."""
    frame = sys._getframe()
    while frame is not None and not any(source in frame.f_code.co_filename for source in SOURCES):
        frame = frame.f_back
    return "other" if frame is None else frame.f_code.co_qualname


def main() -> None:
    """Print each network's table, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, choices=GRIDS, default=2048)
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args()
    networks = Transformers.make()
    forwards = networks.calls(partial, chosen.tokens)
    modules = {"Wan": networks.wan, "our DiT": networks.dit, "diffusers": networks.peer}
    found = {name: kept_bytes(module, forwards[name]) for name, module in modules.items()}
    for name, kept in found.items():
        print(f"{name}: {sum(kept.values()) / 2**20:.0f} MiB")
        for function, size in kept.items():
            if size >= 2**20:
                print(f"{size / 2**20:8.1f}  {function}")
    publish_text(chosen.output, json.dumps({"tokens": chosen.tokens, "bytes": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
