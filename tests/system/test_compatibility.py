"""What commit 901e418 left on the disk is skipped whole, gone on from, and written the same by this program.

`tests/golden/run_before/README.md` says how the data was made. The files are read here as JSON and safetensors, not
through the project, whose records would change together with its files.
"""

import json
import platform
import re
import shutil
import traceback
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from data.dataset.clip import VIDEO_MEMBER, ClipRecord
from data.dataset.shards import read_shard
from launch.commands import app

BEFORE = Path(__file__).resolve().parents[1] / "golden" / "run_before"
OLD = BEFORE / "run"
CONFIG = BEFORE / "run.yaml"
FOLDERS = {
    "draw": "videos",
    "shard": "clips",
    "train autoencoder": "autoencoder",
    "encode": "latents",
    "train dit": "dit",
    "sample": "samples",
    "evaluate": "evaluation",
}
AUTOENCODER_NAME = "autoencoder.safetensors"
# Fields of one start or of one machine. What a checkpoint comes from, and which files it has, is looked at apart.
VARYING = {"build", "wall_seconds", "peak_rss_bytes", "checksum", "world_size", "files", "provenance"}
ADDED = ("contents", "earlier_builds")  # to stage.json, since
VARYING |= {"time", "samples_per_second", "tokens_per_second", "flops_per_second", "step_seconds", "data_wait"}
VARYING |= {"slowest_rank", "slowest_own_seconds", "memory_bytes"}


def launch(*arguments: str) -> str:
    """A command in this process, which must succeed; returns what it printed."""
    result = CliRunner().invoke(app, arguments, prog_name="reelflow")
    told = "".join(traceback.format_exception(result.exception)) if result.exception else ""
    assert result.exit_code == 0, result.output + told
    return result.stdout


def placed(folder: Path) -> list[str]:
    """Options that put the run below `folder`."""
    settings = [f"runs_dir={folder}", f"sample.prompts={BEFORE / 'prompts.jsonl'}", "cluster.workers.num_workers=1"]
    settings += ["data.clip_placement=start", "data.filters.too_large_pixels=null"]  # what that program did
    return [part for setting in settings for part in ("--set", setting)]


def copied(folder: Path) -> Path:
    """A copy of the old run below `folder`, with what was left out of the repository for its size."""
    run_dir = folder / "run"
    shutil.copytree(OLD, run_dir, copy_function=shutil.copyfile)  # without its times: a clone does not keep them either
    attachment = next((OLD / "dit" / "checkpoints").glob(f"*/{AUTOENCODER_NAME}"))
    shutil.copyfile(attachment, run_dir / "latents" / AUTOENCODER_NAME)
    for page in ("report.html", "contact_sheet.png"):  # which must be there, and are not read
        (run_dir / page).touch()
    return run_dir


def digests(folder: Path) -> dict[str, str]:
    """The checksum of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def file_digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def fingerprint(value: object) -> str:
    """As stage.json and commits hold it."""
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def check_alike(found: Any, expected: Any, tolerance: float) -> None:
    """Equal in names, their order, types and values, but for varying fields and the rounding of numbers."""
    assert type(found) is type(expected), (found, expected)
    if isinstance(found, dict):
        assert list(found) == list(expected)
        for name in found.keys() - VARYING:
            check_alike(found[name], expected[name], tolerance)
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_alike(one, other, tolerance)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=tolerance)
    else:
        assert found == expected


def check_checkpoint(found: Path, expected: Path, tolerance: float) -> tuple[dict, dict]:
    """Compare two checkpoint.json, whatever number of workers saved them; returns both."""
    new, old = read(found), read(expected)
    new["trained"].pop("sampling", None)  # stored since
    check_alike(new, old, tolerance)
    check_alike(new["trained"], old["trained"], tolerance)
    assert list(new["provenance"]) == list(old["provenance"])
    assert list(new["provenance"]["versions"]) == list(old["provenance"]["versions"])
    names = [{re.sub(r"\d+", "N", name) for name in record["files"]} for record in (new, old)]
    assert names[0] == names[1]
    assert {tuple(file) for record in (new, old) for file in record["files"].values()} == {("num_bytes", "sha256")}
    return new, old


def sums_of(checkpoint: Path) -> dict[str, tuple[float, float]]:
    """Of every tensor of a checkpoint the sum and the sum of magnitudes, over the files of all ranks."""
    sums: dict[str, tuple[float, float]] = {}
    for path in checkpoint.glob("rank_*.safetensors"):
        for name, tensor in load_file(path).items():
            total, size = sums.get(name, (0.0, 0.0))
            sums[name] = (total + tensor.double().sum().item(), size + tensor.double().abs().sum().item())
    return sums


# ---------------------------------------------------------------- the old run


@pytest.mark.parametrize("config", [CONFIG, OLD / "config.yaml"], ids=["as written", "with every field"])
def test_every_stage_has_nothing_to_do(config, tmp_path):
    run_dir = copied(tmp_path)
    before = digests(run_dir)
    said = launch("run", str(config), *placed(tmp_path))
    answers = re.findall(rf"^({'|'.join(FOLDERS)}): ([a-z ]+)", said, re.MULTILINE)
    assert answers == [(stage, "nothing to do ") for stage in FOLDERS]
    after = digests(run_dir)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    made = {
        "logs/driver.log",
        "clips/index.mmap",
        "latents/index.mmap",
    }  # of the Parquet, when first read
    assert changed - made == {"config.yaml", "run.lock"}  # which every start writes


@pytest.mark.slow
def test_samples_keep_their_names(tmp_path):
    """They are fingerprints of the prompt, the checkpoint and the settings; only the page that is lost is written."""
    run_dir = copied(tmp_path)
    before = digests(run_dir / "samples")
    (run_dir / "samples" / "index.html").unlink()
    said = launch("sample", str(CONFIG), *placed(tmp_path))
    assert "sample: continues: index.html is missing" in said
    after = digests(run_dir / "samples")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"stage.json", "index.html", "manifest.jsonl", ".sample.lock"}
    old, new = (read_lines(folder / "samples" / "manifest.jsonl") for folder in (OLD, run_dir))
    for before, line in zip(old, new, strict=True):  # lines have checksums and settings now
        request = line.pop("request")
        assert request.items() >= before.pop("request").items()
        assert line.items() >= {**before, "sha256": after[before["file"]]}.items()


def test_more_steps_go_on_from_its_checkpoint(tmp_path):
    """Three workers saved it, and went on with it in `continued`; here one does."""
    dit, continued = copied(tmp_path) / "dit", BEFORE / "continued"
    resume = ["--local", "--resume", "--set", "dit.train.steps=10"]
    said = launch("train", "dit", str(CONFIG), *resume, *placed(tmp_path))
    assert "train dit: continues\n" in said
    for name in ("events.jsonl", "metrics.jsonl"):
        old = (OLD / "dit" / name).read_text(encoding="utf-8")
        assert (dit / name).read_text(encoding="utf-8").startswith(old)
        new = read_lines(dit / name)[len(old.strip().splitlines()) :]
        check_alike(new, read_lines(continued / name), tolerance=1e-5)
    assert read_lines(dit / "events.jsonl")[-2]["note"] == "resuming from step 6"
    record = {name: value for name, value in read(dit / "stage.json").items() if name not in ADDED}
    expected = read(continued / "stage.json")
    record["outputs"], more = record["outputs"][:2], record["outputs"][2:]
    assert more == [
        f"checkpoints/step_0000010/{name}" for name in ("autoencoder.safetensors", "rank_00000.safetensors")
    ]
    check_alike(record, expected, tolerance=1e-5)
    assert (dit / "latest").read_text(encoding="utf-8") == "step_0000010\n"

    checkpoint = dit / "checkpoints" / "step_0000010"
    new, old = check_checkpoint(checkpoint / "checkpoint.json", continued / "checkpoint.json", tolerance=0)
    for name in ("dataset", "lineage"):
        assert new["provenance"][name] == old["provenance"][name]
    assert new["files"][AUTOENCODER_NAME] == old["files"][AUTOENCODER_NAME]
    found, expected = sums_of(checkpoint), read(continued / "sums.json")
    assert found.keys() == expected.keys()
    for name, (total, size) in expected.items():
        assert found[name] == pytest.approx((total, size), rel=0, abs=1e-5 * size), name


# ---------------------------------------------------------------- the same run, made anew


@pytest.fixture(scope="module")
def fresh(cluster, tmp_path_factory):
    """The folder of a run of the stages up to the DiT's training, by the code as it is, from the old run's clips."""
    folder = tmp_path_factory.mktemp("fresh")
    options = [str(CONFIG), *placed(folder)]
    for name in ("videos", "clips"):
        shutil.copytree(OLD / name, folder / "run" / name, copy_function=shutil.copyfile)
    launch("train", "autoencoder", *options, "--local")
    launch("encode", *options)
    launch("train", "dit", *options, "--local")
    return folder / "run"


def inputs_of(run_dir: Path, stages: list[str]) -> dict[str, Any]:
    """The inputs of stages, the build or the content of another stage replaced by its name."""
    records = {stage: read(run_dir / FOLDERS[stage] / "stage.json") for stage in stages}
    names = {record["build"]: stage for stage, record in records.items()}
    names |= {value: stage for stage, record in records.items() for value in record.get("contents", {}).values()}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: named(item) for name, item in value.items()}
        return names.get(value, value) if isinstance(value, str) else value

    return {stage: named(record["inputs"]) for stage, record in records.items()}


def test_stages_name_the_same_inputs(fresh):
    stages = ["draw", "shard", "train autoencoder", "encode", "train dit"]
    found, expected = (json.dumps(inputs_of(run_dir, stages), indent=1) for run_dir in (fresh, OLD))
    assert found == expected
    for stage in stages:
        new, old = (read(run_dir / FOLDERS[stage] / "stage.json") for run_dir in (fresh, OLD))
        added = () if stage in ("draw", "shard") else ADDED  # these are the old run's
        assert list(new) == [*old, *added]
        assert (
            new["outputs"][: len(old["outputs"])] == old["outputs"]
        )  # trainings name the files of their checkpoint too
        assert list(new["summary"]) == list(old["summary"])


def test_clips_are_the_same_bytes(cluster, tmp_path):
    """Of frames that need no resizing. Since, another decoder reads them, which only their records say."""
    made_by = read(BEFORE / "made_by.json")
    here = {"machine": platform.machine(), "versions": {name: version(name) for name in made_by["versions"]}}
    if differing := [f"{name} {value}" for name, value in here.items() if value != made_by[name]]:
        pytest.skip(f"other libraries encode other bytes: here are {', '.join(differing)}")
    launch("shard", str(CONFIG), *placed(tmp_path))
    run_dir = tmp_path / "run"
    found, expected = digests(run_dir / "videos"), digests(OLD / "videos")
    assert found.keys() == expected.keys()
    assert {name for name in found if found[name] != expected[name]} <= {"stage.json"}
    new, old = (samples_of(folder / "clips") for folder in (run_dir, OLD))
    assert new.keys() == old.keys()
    for key, (record, payload) in new.items():
        old_record, old_payload = old[key]
        assert record.model_copy(update={"decoder": old_record.decoder}) == old_record
        assert payload == old_payload


def samples_of(clips_dir: Path) -> dict[str, tuple[ClipRecord, bytes]]:
    """Record and payload of every clip, by its key."""
    samples = (sample for path in sorted(clips_dir.glob("*.tar")) for sample in read_shard(path, VIDEO_MEMBER))
    return {record.key: (record, payload) for record, payload in samples}


def test_latents_are_the_same_but_for_rounding(fresh):
    new, old = fresh / "latents", OLD / "latents"
    assert digests(new).keys() == digests(old).keys() | {AUTOENCODER_NAME, "index.mmap"}
    found, expected = read(new / "manifest.json"), read(old / "manifest.json")
    assert found.pop("latent_stats").keys() == expected.pop("latent_stats").keys()
    assert found.pop("listing") is None  # of datasets of clips
    for manifest in (found, expected):
        del manifest["fingerprint"]
        for shard in manifest["shards"]:
            del shard["sha256"]
    assert json.dumps(found) == json.dumps(expected)

    weights = {new: new / AUTOENCODER_NAME, old: OLD / "dit" / "checkpoints" / "step_0000006" / AUTOENCODER_NAME}
    for number in range(2):
        commits = []
        for latents, autoencoder in weights.items():
            commit = read(latents / f"shard-{number:05d}.commit.json")
            clips = latents.parent / "clips" / f"shard-{number:05d}.tar"
            settings = read(latents / "stage.json")["inputs"]["config"]
            made_from = [file_digest(clips), file_digest(autoencoder), settings]
            assert commit.pop("made_from") == fingerprint(made_from)
            commit.pop("latents_from", None)
            del commit["shard"]["sha256"]
            for row in commit["rows"]:
                del row["crc32"]
            commits.append(commit)
        check_alike(*commits, tolerance=1e-4)


@pytest.mark.parametrize(("kind", "step"), [("autoencoder", 4), ("dit", 6)])
def test_trainings_are_the_same_but_for_rounding(kind, step, fresh):
    for name in ("events.jsonl", "metrics.jsonl", "validation.jsonl"):
        check_alike(read_lines(fresh / kind / name), read_lines(OLD / kind / name), tolerance=1e-4)
    record = f"checkpoints/step_{step:07d}/checkpoint.json"
    check_checkpoint(fresh / kind / record, OLD / kind / record, tolerance=1e-4)
