"""A checkpoint whose checksums are right and whose contents are not is refused, before memory is taken for it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.files.checksums import file_sha256
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.fragments import check_fragments
from pipeline.checkpoint.read import find_damage, open_checkpoint
from pipeline.checkpoint.record import CheckpointError, _checksum, rank_file
from pipeline.train.monitor.events import read_events
from testing.often_saved import resume, step_folder

Fields = dict[str, Any]
MAX_CHARACTERS = 1500


def seal(folder: Path, change: Callable[[Fields], object]) -> None:
    """Change checkpoint.json, and give it and the file of rank 0 the right checksums."""
    path = folder / rank_file(0)
    fields = json.loads((folder / "checkpoint.json").read_text())
    del fields["checksum"]
    fields["files"][rank_file(0)] = {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
    change(fields)
    (folder / "checkpoint.json").write_text(json.dumps(fields | {"checksum": _checksum(fields)}))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object], metadata: bool = True) -> None:
    """Change the tensors and starts of the file of rank 0."""
    with safe_open(folder / rank_file(0), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        starts = json.loads(file.metadata()["starts"])
    change(tensors, starts)
    save_file(tensors, folder / rank_file(0), metadata={"starts": json.dumps(starts)} if metadata else None)
    seal(folder, lambda _: None)


def first(folder: Path) -> str:
    """The name of the first parameter."""
    return next(iter(json.loads((folder / "checkpoint.json").read_text())["parameters"]))


def record_of(path: str) -> Fields:
    """The right size and checksum of a file."""
    return {"num_bytes": Path(path).stat().st_size, "sha256": file_sha256(Path(path))}


OUTSIDE, NO_FILE_NAME = "/etc/passwd", r"files\.(\.\./|/etc/passwd).*should match pattern"
RECORDS = {
    "huge shape": (lambda f, n: f["parameters"].update({n: [10**12]}), "do not cover its 1000000000000 values"),
    "negative shape": (lambda f, n: f["parameters"].update({n: [-4, -4]}), r"parameters\..*greater than or equal to 0"),
    "one parameter more": (lambda f, _: f["parameters"].update({"more": [4]}), "fragments of more do not cover its 4"),
    "path outside": (lambda f, _: f["files"].update({"../" * 40 + OUTSIDE[1:]: record_of(OUTSIDE)}), NO_FILE_NAME),
    "absolute path": (lambda f, _: f["files"].update({OUTSIDE: record_of(OUTSIDE)}), NO_FILE_NAME),
    "many workers": (lambda f, _: f.update(world_size=10**12), "1000000000000 workers saved it, but it lists 2 files"),
    "no file of a rank": (lambda f, _: f.update(world_size=2), "lists no file rank_00001"),
    "negative size": (lambda f, _: f["files"][rank_file(0)].update(num_bytes=-1), "num_bytes: .*greater than or equal"),
    "negative cursor": (lambda f, _: f.update(cursor=-1), "cursor: .*greater than or equal to 0"),
    "no averages": (lambda f, _: f.update(averages=[]), "averages: .*at least 1 item"),
    "many mistakes": (lambda f, _: f.update({f"x{i}" * 200: "y" * 10_000 for i in range(1000)}), "and 996 more"),
}
FILES = {
    "no start": (lambda t, s, n: s.pop(n), "do not cover its"),
    "negative start": (lambda t, s, n: s.update({n: -3}), "do not cover its"),
    "late start": (lambda t, s, n: s.update({n: 1}), "do not cover its"),
    "start in words": (lambda t, s, n: s.update({n: "0"}), "does not say where each fragment starts"),
    "unknown name": (lambda t, s, n: s.update({"z" * 9999: 0}), "which checkpoint.json does not list"),
    "no tensor": (lambda t, s, n: t.pop(f"exp_avg/{n}"), "it lacks the tensor exp_avg/"),
    "short tensor": (lambda t, s, n: t.update({f"master/{n}": t[f"master/{n}"][:-1].clone()}), "different lengths"),
    "other type": (lambda t, s, n: t.update({f"master/{n}": t[f"master/{n}"].half()}), "is not one row of float32"),
    "two dimensions": (lambda t, s, n: t.update({f"master/{n}": t[f"master/{n}"][None]}), "is not one row of float32"),
}


def refusals(run_dir: Path) -> list[str]:
    """What opening with checksums, without them, and an export say."""
    folder, told = step_folder(run_dir, 8), []
    for use in (
        lambda: open_checkpoint(run_dir),
        lambda: check_fragments(open_checkpoint(run_dir, verify=False)),
        lambda: export_weights(open_checkpoint(folder, verify=False), run_dir / "exported.safetensors"),
    ):
        with pytest.raises(CheckpointError) as refused:
            use()
        told.append(str(refused.value))
    assert not list(run_dir.glob("exported*"))
    return told


@pytest.mark.parametrize("case", sorted(RECORDS))
def test_a_record_that_makes_no_sense_is_refused_in_few_words(run_dir, case):
    change, expected = RECORDS[case]
    folder = step_folder(run_dir, 8)
    seal(folder, lambda fields: change(fields, first(folder)))
    for told in refusals(run_dir):
        assert re.search(expected, told), told
        assert len(told) < MAX_CHARACTERS


@pytest.mark.parametrize("case", sorted(FILES))
def test_fragments_that_do_not_tile_the_parameters_are_refused(run_dir, case):
    """Before, a fragment that `starts` leaves out was exported as values that are not numbers, with exit code 0."""
    change, expected = FILES[case]
    folder = step_folder(run_dir, 8)
    rewrite(folder, lambda tensors, starts: change(tensors, starts, first(folder)))
    for told in refusals(run_dir):
        assert expected in told, told
        assert len(told) < MAX_CHARACTERS


def test_a_file_without_metadata_is_refused(run_dir):
    rewrite(step_folder(run_dir, 8), lambda tensors, starts: None, metadata=False)
    assert all("does not say where each fragment starts" in told for told in refusals(run_dir))


@pytest.mark.parametrize("value", [None, 5, {"width": "wide"}])
def test_a_record_that_does_not_say_what_was_trained_is_refused(run_dir, value):
    folder = step_folder(run_dir, 8)
    seal(folder, lambda f: f["trained"].pop("model") if value is None else f["trained"].update(model=value))
    checkpoint = open_checkpoint(folder)
    if isinstance(value, dict):  # an export only copies the fields; sampling reads them
        from pipeline.sample.model import trained_model

        with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged: trained\.model: "):
            trained_model(checkpoint)
        return
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is damaged: .*model"):
        export_weights(checkpoint, run_dir / "exported.safetensors")


def test_a_network_larger_than_its_weights_is_refused_before_memory_is_taken(run_dir):
    from pipeline.sample.config import SampleConfig
    from pipeline.sample.model import open_model
    from pipeline.sample.sampler import ClipSampler

    folder = step_folder(run_dir, 8)
    seal(folder, lambda fields: fields["trained"]["model"].update(width=2**16))
    with pytest.raises(CheckpointError, match=r"is damaged: .* but the network that it describes has"):
        ClipSampler(open_model(folder), SampleConfig(), torch.device("cpu"))


def test_training_goes_on_from_the_checkpoint_before_one_that_makes_no_sense(tiny_latents, run_dir):
    folder = step_folder(run_dir, 8)
    rewrite(folder, lambda tensors, starts: starts.pop(first(folder)))
    assert len(find_damage(folder)) == 1
    resume(tiny_latents, run_dir)
    assert read_events(run_dir)[-2].step == 6
    assert "do not cover its" in read_events(run_dir)[-2].note
