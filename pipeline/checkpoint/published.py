"""Folders of published models in the layout of diffusers: config.json, and safetensors in one file or in shards.

    transformer/config.json
    transformer/diffusion_pytorch_model.safetensors                      or
    transformer/diffusion_pytorch_model.safetensors.index.json           name of each tensor -> name of its file
    transformer/diffusion_pytorch_model-00001-of-00002.safetensors ...

Everything about a folder is checked from its headers, before a value is read. Values are read one weight at a time.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.errors import ReelflowError, first_line, shorten
from data.files.checksums import file_sha256
from data.files.publish import fsync, temporary_sibling
from models.published import Correspondence, PublishedTensor, join_parts, split_parts
from pipeline.checkpoint.record import listed, mistakes
from pipeline.checkpoint.tensor_files import BYTES_PER_VALUE, stream_tensors

CONFIG_NAME = "config.json"
WEIGHTS_STEM = "diffusion_pytorch_model"
WEIGHTS_NAME = f"{WEIGHTS_STEM}.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
PIPELINE_NAME = "model_index.json"  # in a folder with several models
DTYPES = ("F32", "F16", "BF16")
MAX_SHARD_BYTES = 5 * 10**9
T = TypeVar("T")
_FIELDS = TypeAdapter(dict[str, Any])
_WEIGHT_MAP = TypeAdapter(dict[str, str])


class PublishedError(ReelflowError, ValueError):
    """A published folder that cannot be used; the message names the file, the key and what was expected."""


@dataclass(frozen=True)
class PublishedFolder:
    """A published model on disk, of which the configuration and the names of the tensors have been read."""

    folder: Path
    fields: dict[str, Any]
    """The content of config.json."""
    files: dict[str, str]
    """Tensor -> name of the file that holds it."""

    @property
    def config_path(self) -> Path:
        """config.json."""
        return self.folder / CONFIG_NAME

    def described(self, read: Callable[[dict[str, Any]], T]) -> T:
        """The model that config.json describes, as `read` makes it.

        Raises:
            PublishedError: it describes another model, or one that is not supported; names the field.
        """
        try:
            return read(self.fields)
        except ValidationError as error:
            raise PublishedError(f"{self.config_path}: {mistakes(error)}") from error
        except ValueError as error:
            raise PublishedError(f"{self.config_path}: {error}") from error

    def fingerprint(self) -> str:
        """Changes with the configuration or any weight; reads all files."""
        names = [CONFIG_NAME, *sorted(set(self.files.values()))]
        contents = "\n".join(f"{name} {file_sha256(self.folder / name)}" for name in names)
        return sha256(contents.encode()).hexdigest()[:16]

    def check_tensors(self, tensors: Correspondence, unused: Collection[str] = ()) -> None:
        """Compare names, shapes and types of all tensors with those of the model, from the headers alone.

        Args:
            tensors: of the model.
            unused: names of tensors that published files may hold beside them, and that the model does not use.

        Raises:
            PublishedError: names the first tensor that is missing, unknown, or of another shape or type.
        """
        expected = {part.name: list(part.shape) for part in chain.from_iterable(tensors.values())}
        for name in sorted(expected.keys() - self.files.keys()):
            raise PublishedError(
                f"{self.folder} lacks the tensor {name} {expected[name]}, which its {CONFIG_NAME} promises"
                f"{_count(len(expected.keys() - self.files.keys()))}; copy it again, whole"
            )
        unknown = self.files.keys() - expected.keys() - set(unused)
        for name in sorted(unknown):
            raise PublishedError(
                f"{self.folder / self.files[name]} holds the tensor {shorten(name, 100)}, which the model that "
                f"{CONFIG_NAME} describes has not{_count(len(unknown))}; it is of another model, or of a variant that "
                "is not supported"
            )
        with ExitStack() as stack:
            opened = self._opened(stack)
            for name, shape in expected.items():
                found = opened[self.files[name]].get_slice(name)
                if found.get_shape() != shape or found.get_dtype() not in DTYPES:
                    raise PublishedError(
                        f"{self.folder / self.files[name]}: {name} is {found.get_dtype()} {found.get_shape()}, but "
                        f"{CONFIG_NAME} describes {shape} of {', '.join(DTYPES)}"
                    )

    def weights(self, tensors: Correspondence, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, Tensor]]:
        """The weights of ours in the order of `shapes`, float32, one in memory at a time.

        Args:
            tensors: what has passed `check_tensors`.
            shapes: of our weights.
        """
        with ExitStack() as stack:
            opened = self._opened(stack)
            for name, shape in shapes.items():
                parts = [opened[self.files[part.name]].get_tensor(part.name).float() for part in tensors[name]]
                yield name, join_parts(parts, shape)

    def _opened(self, stack: ExitStack) -> dict[str, Any]:
        """Each file by its name, opened until the stack is closed."""
        return {
            name: stack.enter_context(_open_tensors(self.folder / name)) for name in sorted(set(self.files.values()))
        }


def is_pipeline(folder: Path) -> bool:
    """Whether a folder holds a published pipeline: several models, each in a folder of its own."""
    return (folder / PIPELINE_NAME).is_file()


def is_published(folder: Path) -> bool:
    """Whether a folder holds a published pipeline, or a published model of its own."""
    return is_pipeline(folder) or (folder / CONFIG_NAME).is_file()


def open_component(folder: Path, name: str) -> PublishedFolder:
    """A published model from its own folder, or from the folder of a pipeline that has it under a name.

    Raises:
        PublishedError: as `open_published`.
    """
    return open_published(folder / name if is_pipeline(folder) else folder)


def open_published(folder: Path) -> PublishedFolder:
    """A published model from its own folder. Reads config.json, the index and the headers of the files.

    Raises:
        PublishedError: a file is missing, damaged or pickled, or the index and the files disagree.
    """
    fields = read_json(folder / CONFIG_NAME)
    if (folder / INDEX_NAME).is_file():
        files = _read_index(folder)
    elif (folder / WEIGHTS_NAME).is_file():
        with _open_tensors(folder / WEIGHTS_NAME) as file:
            files = dict.fromkeys(file.keys(), WEIGHTS_NAME)
    else:
        found = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
        is_pickled = any(not name.endswith(".safetensors") for name in found)
        pickled = "; pickled files could run code and are not read" if is_pickled else ""
        raise PublishedError(
            f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}; of weights it has "
            f"{listed(found) or 'none'}{pickled}: save the model with safe_serialization=True, without a variant"
        )
    return PublishedFolder(folder, fields, files)


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file of a published folder.

    Raises:
        PublishedError: it is missing, or no JSON object.
    """
    try:
        return _FIELDS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise PublishedError(f"{path} is missing; name a folder of a published model in the layout of diffusers") from (
            error
        )
    except OSError as error:
        raise PublishedError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise PublishedError(f"{path} is damaged: {mistakes(error)}") from error


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor -> file, as the index says and the files confirm."""
    path = folder / INDEX_NAME
    try:
        files = _WEIGHT_MAP.validate_python(read_json(path).get("weight_map"))
    except ValidationError as error:
        raise PublishedError(f"{path} is damaged: weight_map: {mistakes(error)}") from error
    if not files:
        raise PublishedError(f"{path} is damaged: weight_map names no tensor")
    held: dict[str, str] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise PublishedError(f"{path} names {shorten(name, 100)}, which is no safetensors file in that folder")
        if not (folder / name).is_file():
            lost = sum(file == name for file in files.values())
            raise PublishedError(f"{folder / name} is missing: {INDEX_NAME} says that it holds {lost} tensors")
        with _open_tensors(folder / name) as file:
            held |= dict.fromkeys(file.keys(), name)
    for name in sorted(files.keys() | held.keys()):
        if files.get(name) != held.get(name):
            raise PublishedError(
                f"{path} says that {shorten(name, 100)} is in {files.get(name, 'no file')}, but it is in "
                f"{held.get(name, 'none of the files')}; copy the folder again, whole"
            )
    return files


def _open_tensors(path: Path) -> Any:  # noqa: ANN401 - safetensors is untyped
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise PublishedError(f"{path} is damaged: {first_line(error)}; copy it again") from error


def _count(number: int) -> str:
    return f" (and {number - 1} more)" if number > 1 else ""


def write_published(
    folder: Path,
    fields: Mapping[str, Any],
    tensors: Correspondence,
    weights: Iterator[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model in the layout of diffusers, float32, one weight in memory at a time. The folder appears whole.

    Args:
        folder: must not exist.
        fields: the content of config.json.
        tensors: in the order of `weights`.
        weights: every weight of ours.
        max_shard_bytes: a file gets so many bytes at most, but one weight at least.

    Raises:
        PublishedError: the folder exists.
        OSError: a file cannot be written.
    """
    if folder.exists():
        raise PublishedError(f"{folder} exists, and nothing is replaced in it: name a folder that does not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(folder)
    try:
        temporary.mkdir()
        groups = _groups(list(tensors.values()), max_shard_bytes)
        index: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            name = f"{WEIGHTS_STEM}-{number:05d}-of-{len(groups):05d}.safetensors" if len(groups) > 1 else WEIGHTS_NAME
            shapes = {part.name: list(part.shape) for part in chain.from_iterable(group)}
            parts = (part for pair in islice(weights, len(group)) for part in _parts(*pair, tensors))
            stream_tensors(temporary / name, shapes, parts, {"format": "pt"})
            index |= dict.fromkeys(shapes, name)
        if len(groups) > 1:
            total = BYTES_PER_VALUE * sum(map(_num_values, tensors.values()))
            _write_json(temporary / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(temporary / CONFIG_NAME, fields)
        fsync(temporary)
        temporary.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _parts(name: str, weight: Tensor, tensors: Correspondence) -> Iterable[Tensor]:
    """The published tensors that a weight consists of."""
    return split_parts(weight.cpu().float(), tensors[name]).values()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2) + "\n", encoding="utf-8")
    fsync(path)


def _groups(weights: list[Sequence[PublishedTensor]], max_bytes: int) -> list[list[Sequence[PublishedTensor]]]:
    """Consecutive weights, as many in a group as fit into `max_bytes`."""
    groups: list[list[Sequence[PublishedTensor]]] = []
    filled = 0
    for parts in weights:
        size = BYTES_PER_VALUE * _num_values(parts)
        if not groups or filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(parts)
        filled += size
    return groups


def _num_values(parts: Sequence[PublishedTensor]) -> int:
    return sum(torch.Size(part.shape).numel() for part in parts)
