"""Reading checkpoints: verifying their files, and putting together whole weights."""

from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from data.files.checksums import file_sha256
from pipeline.checkpoint.fragments import check_fragments, open_rank_file, read_starts
from pipeline.checkpoint.record import (
    CHECKPOINT_RECORD_NAME,
    FOLDER_NAME,
    LAST_SAVE_NAME,
    LATEST_NAME,
    Checkpoint,
    CheckpointError,
    FileRecord,
    LastSave,
    is_checkpoint_name,
    listed,
    mistakes,
    read_checkpoint_record,
    step_folders,
)
from pipeline.run.weight_names import FIRST_AVERAGE, WeightsName


def require_checkpoint(run_dir: Path, saved_step: int = 0) -> None:
    """Check that there is a checkpoint to resume from.

    Args:
        saved_step: as for `lost_checkpoints`.

    Raises:
        CheckpointError: there is none; says what is missing where there has been one.
    """
    folders = list(step_folders(run_dir).values())
    gaps = [gap for folder in reversed(folders) for gap in find_gaps(folder)]
    if any(is_complete(folder) for folder in folders):
        return
    if gaps:
        raise CheckpointError(f"{run_dir} has no checkpoint to resume from: {listed(gaps)}. {way_out(run_dir)}")
    if saved_step:
        raise CheckpointError(lost_checkpoints(run_dir, saved_step))
    raise CheckpointError(f"{run_dir} holds no checkpoint to resume from; without --resume training starts anew")


def way_out(run_dir: Path) -> str:
    """What to do where checkpoints have been saved and none can be used."""
    return f"Restore one, or to train from the beginning move {run_dir} away"


def lost_checkpoints(run_dir: Path, saved_step: int) -> str:
    """The message for a training whose checkpoints are gone.

    Args:
        saved_step: the last step that is known to have been saved.
    """
    return (
        f"{run_dir} has no checkpoint to resume from, although one was saved at step {saved_step}: "
        f"{run_dir / FOLDER_NAME} and {run_dir / LATEST_NAME} are missing. If they are on a disk that is not mounted, "
        f"mount it. {way_out(run_dir)}"
    )


def read_last_save(run_dir: Path) -> int:
    """The step that last_save.json names; 0 where there is no such file.

    Raises:
        CheckpointError: the file is damaged, so it is not known whether there was a checkpoint.
    """
    path = run_dir / LAST_SAVE_NAME
    try:
        return LastSave.model_validate_json(path.read_bytes()).step
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); make it readable") from error
    except ValidationError as error:
        raise CheckpointError(
            f'{path} is damaged: {mistakes(error)}; it holds the step of the newest checkpoint, as {{"step": 8}}; '
            f"write that into it, or delete it if {run_dir / FOLDER_NAME} holds every checkpoint that was saved"
        ) from error


def newest_complete_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint; 0 if there is none."""
    return max((step for step, folder in step_folders(run_dir).items() if is_complete(folder)), default=0)


def find_damage(folder: Path, part: int = 0, num_parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint, one line per file; files are read in full to compare checksums.

    Args:
        part, num_parts: verify only every `num_parts`-th file, starting at `part`, so that ranks share the reading.
            Part 0 also compares the headers of all files with the record.
    """
    try:
        record = read_checkpoint_record(folder)
    except CheckpointError as error:
        return [str(error)]
    names = sorted(record.files)[part::num_parts]
    found = (_file_damage(folder / name, record.files[name], content=True) for name in names)
    problems = [problem for problem in found if problem]
    if part == 0 and is_complete(folder) and not problems:
        try:
            check_fragments(Checkpoint(folder, record))
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def find_gaps(folder: Path) -> list[str]:
    """Which files of a checkpoint are missing or have another size, one line per file; reads checkpoint.json only."""
    try:
        files = read_checkpoint_record(folder).files
    except CheckpointError as error:
        return [str(error)]
    problems = (_file_damage(folder / name, file, content=False) for name, file in files.items())
    return [problem for problem in problems if problem]


def is_complete(folder: Path) -> bool:
    """Whether every file of a checkpoint exists in its full size; reads checkpoint.json only."""
    return not find_gaps(folder)


def _file_damage(path: Path, file: FileRecord, *, content: bool) -> str | None:
    """What is wrong with a file, or None; its checksum is compared only if `content`."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != file.num_bytes:
            return f"{path} is damaged (it has {size} of {file.num_bytes} bytes)"
        if content and file_sha256(path) != file.sha256:
            return f"{path} is damaged (its checksum differs)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def open_checkpoint(path: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint from its own folder, or the latest of a run's folder.

    Args:
        verify: compare the checksums of all files, which are read in full; False: read `checkpoint.json` only.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the file and the way out.
    """
    pointer = path / LATEST_NAME
    if not (path / CHECKPOINT_RECORD_NAME).is_file() and pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if not is_checkpoint_name(name):
            raise CheckpointError(f"{pointer} holds {name[:40]!r} instead of a checkpoint's name; write one into it")
        path = path / FOLDER_NAME / name
    elif not (path / CHECKPOINT_RECORD_NAME).is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds no {CHECKPOINT_RECORD_NAME} (nor {LATEST_NAME}, as a run's folder "
            f"does); train first, or name a folder like runs/NAME/dit"
        )
    if verify and (damage := find_damage(path)):
        raise CheckpointError(f"{listed(damage)}; restore it, or point {LATEST_NAME} to an older checkpoint")
    return Checkpoint(path, read_checkpoint_record(path))


def stream_weights(
    checkpoint: Checkpoint, which: WeightsName = FIRST_AVERAGE, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by parameter name, put together from the fragments of all ranks, one in memory at a time.

    Args:
        prefix: of the names of the weights that are read.

    Raises:
        CheckpointError: there are no such weights, and the message lists those there are; or its files do not hold
            every value of every parameter.
    """
    kind = checkpoint.kind_of(which)
    check_fragments(checkpoint)
    with ExitStack() as opened:
        files = [opened.enter_context(open_rank_file(checkpoint, rank)) for rank in range(checkpoint.record.world_size)]
        starts = [read_starts(file, checkpoint, rank) for rank, file in enumerate(files)]
        for name, shape in checkpoint.record.parameters.items():
            if not name.startswith(prefix):
                continue
            flat = torch.empty(prod(shape))  # `check_fragments` made sure that every value is filled
            for file, here in zip(files, starts, strict=True):
                if name in here:
                    part = file.get_tensor(f"{kind}/{name}")
                    flat[here[name] : here[name] + part.numel()] = part
            yield name, flat.reshape(shape)


def load_weights(checkpoint: Checkpoint, which: WeightsName = FIRST_AVERAGE) -> dict[str, Tensor]:
    """All weights by parameter name, as `stream_weights` yields them."""
    return dict(stream_weights(checkpoint, which))
