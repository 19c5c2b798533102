"""Everything that touches DeepSpeed's private names."""

import importlib
import logging
import os
import sys
from typing import Any

import torch


def import_deepspeed() -> Any:  # noqa: ANN401 - deepspeed is untyped
    """DeepSpeed, quiet, and on a CPU without its shared-memory operator, which would need a C++ compiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _import_muon()
    importlib.import_module("deepspeed.comm.torch")
    # `import deepspeed.comm.torch as m` would bind the top-level torch: deepspeed.comm has a name `torch` of its own
    if not torch.cuda.is_available():
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def _import_muon() -> None:
    """DeepSpeed asks every optimizer whether it is Muon, whose module brings torch's compiler: 1.5 s of every start."""
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiled
