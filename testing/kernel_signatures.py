"""Signatures of the attention kernels that libraries publish, read from their archives without building them.

    python -m testing.kernel_signatures ARCHIVE... > tests/models/attention/kernel_signatures.json

writes the signatures that `tests/models/attention/test_flash.py` checks our calls against. The archives are those
that the package index serves: the source distribution of flash-attn (which also holds flash-attn 3, in `hopper/`), and
the wheels of flash-attn-4 and torch. Only their source is read; nothing of them is imported.
"""

import ast
import hashlib
import inspect
import json
import sys
import tarfile
import zipfile
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

FUNCTIONS = ("flash_attn_func", "flash_attn_varlen_func", "varlen_attn")
MODULES = {
    "flash_attn/flash_attn_interface.py": "flash_attn",
    "hopper/flash_attn_interface.py": "flash_attn_interface",
    "flash_attn/cute/interface.py": "flash_attn.cute",
    "torch/nn/attention/varlen.py": "torch.nn.attention.varlen",
}
"""Files with the functions, and the modules that they are imported from."""


@dataclass(frozen=True)
class RecordedModule:
    """The functions of a module in one archive."""

    module: str
    archive: str
    sha256: str
    """Of the archive."""
    functions: dict[str, str]
    """The parameters of each function, as in Python, with ... in place of every default."""

    def signature(self, function: str) -> inspect.Signature:
        """What arguments can be bound to."""
        definition = ast.parse(f"def {function}({self.functions[function]}): ...").body[0]
        assert isinstance(definition, ast.FunctionDef)
        return _signature(definition.args)


def read_archive(path: Path) -> list[RecordedModule]:
    """The modules with kernels in a wheel or a source distribution."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return [RecordedModule(MODULES[name], path.name, digest, functions(source)) for name, source in _sources(path)]


def _sources(path: Path) -> list[tuple[str, str]]:
    """The files of `MODULES` that an archive holds."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return [(name, wheel.read(name).decode()) for name in sorted(MODULES) if name in wheel.namelist()]
    found = []
    with tarfile.open(path) as archive:
        for member in archive:
            _, _, name = member.name.partition("/")  # below the folder of the release
            if name in MODULES and (file := archive.extractfile(member)) is not None:
                found.append((name, file.read().decode()))
    return sorted(found)


def functions(source: str) -> dict[str, str]:
    """The parameters of the functions of `FUNCTIONS` that the source of a module defines, see `RecordedModule`."""
    definitions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    return {node.name: _parameters(node.args) for node in definitions if node.name in FUNCTIONS}


def _parameters(arguments: ast.arguments) -> str:
    default = ast.Constant(...)
    for each in chain(arguments.posonlyargs, arguments.args, arguments.kwonlyargs):
        each.annotation = None
    arguments.defaults = [default for _ in arguments.defaults]
    arguments.kw_defaults = [None if each is None else default for each in arguments.kw_defaults]
    return ast.unparse(arguments)


def _signature(arguments: ast.arguments) -> inspect.Signature:
    named = inspect.Parameter
    positional = [(each.arg, named.POSITIONAL_ONLY) for each in arguments.posonlyargs]
    positional += [(each.arg, named.POSITIONAL_OR_KEYWORD) for each in arguments.args]
    keywords = [(each.arg, named.KEYWORD_ONLY) for each in arguments.kwonlyargs]
    required = [named.empty] * (len(positional) - len(arguments.defaults))
    optional = [named.empty if each is None else ... for each in arguments.kw_defaults]
    defaults = [*required, *(... for _ in arguments.defaults), *optional]
    return inspect.Signature(
        [named(name, kind, default=each) for (name, kind), each in zip(positional + keywords, defaults, strict=True)]
    )


def load_recorded(path: Path) -> list[RecordedModule]:
    """The records that `main` has written."""
    return [RecordedModule(**record) for record in json.loads(path.read_text(encoding="utf-8"))]


def main(archives: list[str]) -> None:
    """Print the records of all archives as JSON."""
    records = [asdict(record) for archive in archives for record in read_archive(Path(archive))]
    json.dump(records, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
