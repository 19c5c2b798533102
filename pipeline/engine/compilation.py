"""torch.compile for the blocks of a network, and the folder that keeps compiled code between starts."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.layers import BlockStack

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
MAX_GRAPHS = 64
"""Graphs of one function, over all kinds of blocks, sizes of batches, and passes with and without gradients. Beyond it
torch ends with an error, which says what differed; its own limit, 8, is too low for blocks of three kinds."""
LIBRARY_SUFFIXES = (".so", ".o")


def compile_network(
    module: nn.Module, *, has_breaks: bool = False, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the blocks of every `BlockStack`, or the whole module if it has none, when they are first called.

    Blocks of a stack have equal code and are compiled once for all of them: first for the shapes that come first, then
    once more for all other shapes. The layers around them do little work and branch on values of tensors, which a
    compiled graph cannot. Each block is one graph, so that code which torch cannot trace is an error and not a loss of
    speed that nobody sees.

    Args:
        has_breaks: something inside the blocks cannot be traced, which leaves several graphs a block.
        backend: of torch.compile.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_GRAPHS)
    stacks = [part for part in module.modules() if isinstance(part, BlockStack)]
    for block in chain.from_iterable(stacks):
        block.compile(fullgraph=not has_breaks, backend=backend)
    if not stacks:
        module.compile(backend=backend)


@contextmanager
def compiled_code_in(folder: Path) -> Iterator[None]:
    """Keep what is compiled while the block runs in `folder`, and use what an earlier start on this machine kept there.

    A compiler that was killed leaves part of a file, which every later start would fail to load: such files are removed
    first, so no other process may compile into `folder` yet. Each machine has a folder of its own in it, because the
    code is for its processor. Where the user has set TORCHINDUCTOR_CACHE_DIR, that folder is used, as it is.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # takes a second, unless something compiles

    before = os.environ.get(CACHE_VARIABLE, default_cache_dir())
    if before != default_cache_dir():  # torch itself sets the variable, to its default
        yield
        return
    own = folder / socket.gethostname()
    remove_truncated(own)
    os.environ[CACHE_VARIABLE] = str(own)
    try:
        yield
    finally:
        os.environ[CACHE_VARIABLE] = before


def remove_truncated(folder: Path) -> list[Path]:
    """Delete the libraries and object files in `folder` that were not written to the end; returns their paths."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in LIBRARY_SUFFIXES and _is_truncated(path)]
    for path in found:
        path.unlink(missing_ok=True)  # another rank of this machine may have deleted it
    return found


def _is_truncated(path: Path) -> bool:
    """Whether a file is not a whole ELF file of 64 bits, which ends with its table of sections or after it."""
    try:
        with path.open("rb") as file:
            header, size = file.read(64), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return True
    table, entry, count = (int.from_bytes(header[start:end], "little") for start, end in ((40, 48), (58, 60), (60, 62)))
    return table == 0 or size < table + entry * count
