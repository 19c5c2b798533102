"""What rows ask for beside their text: settings and shapes of their own, refused by row and field where they cannot."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.dataset.buckets import Bucket
from data.files.checksums import file_sha256
from models.autoencoder.config import AutoencoderConfig
from models.flow.spec import FlowSpec
from pipeline.checkpoint.record import CheckpointError
from pipeline.sample import checks
from pipeline.sample.batches import batches_of
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel, TrainedModel
from pipeline.sample.plan import BadRows, Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import PromptError
from pipeline.sample.requests import PromptRequest
from testing.sampled import model_of

BUCKET = Bucket(num_frames=9, height=32, width=32, fps=8)
MODEL = model_of(buckets=[BUCKET.model_dump()])


class WithShapes(TrainedModel):
    """A model whose autoencoder need not be on the disk."""

    @property
    def compression(self):
        return AutoencoderConfig().compression


ANY_SHAPE = WithShapes(**vars(MODEL))


def write(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plan(
    path: Path, model: SampledModel = MODEL, bad_rows: BadRows | None = None, run_seed: int = 0, **settings: Any
) -> Plan:
    bad_rows = bad_rows or BadRows()
    return Plan(model, SampleConfig(**settings), PromptsFile(str(path), bad_rows.add), run_seed, False, bad_rows)


def requests(folder: Path, *rows: dict[str, Any], **settings: Any) -> list[PromptRequest]:
    return list(plan(write(folder, *rows), **settings))


def test_a_row_with_settings_of_its_own_is_the_clip_of_a_job_with_these(tmp_path):
    settings: dict[str, Any] = {"steps": 7, "solver": "ddim", "ddim_eta": 0.5, "guidance_scale": 4.0}
    settings |= {"guidance": "apg", "apg_eta": 0.2, "grid": "karras", "shift": 2.0, "negative_prompt": "dark"}
    own, other = requests(tmp_path, {"prompt": "a", "seed": 1, **settings}, {"prompt": "a", "seed": 1})
    (of_job,) = requests(tmp_path, {"prompt": "a", "seed": 1}, **settings)
    assert own == of_job
    assert own.id != other.id
    assert own.settings == SampleConfig(**settings)
    assert json.loads(own.model_dump_json())["settings"]["ddim_eta"] == 0.5
    assert PromptRequest.model_validate_json(own.model_dump_json()) == own


def test_every_table_gives_the_same_requests(tmp_path):
    rows = [
        {"prompt": "a", "seed": 1, "steps": 3, "guidance_interval": [0.25, 0.75], "meta.source": "x"},
        {"prompt": "b", "seed": None, "steps": None, "guidance_interval": None, "meta.source": "y"},
    ]
    expected = requests(tmp_path, *rows)
    assert expected[0].settings == SampleConfig(steps=3, guidance_interval=(0.25, 0.75))
    assert [request.metadata for request in expected] == [{"source": "x"}, {"source": "y"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    table = 'prompt,seed,steps,guidance_interval,meta.source\na,1,3,"0.25,0.75",x\nb,,,,y\n'
    (tmp_path / "rows.csv").write_text(table)
    (tmp_path / "rows.TSV").write_text(table.replace('"0.25,0.75"', "0.25;0.75").replace(",", "\t").replace(";", ","))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    for name in ("rows.parquet", "rows.csv", "rows.TSV", "rows.json"):
        assert list(plan(tmp_path / name)) == expected, name


def test_a_file_in_a_store_is_read_by_its_uri(tmp_path):
    import fsspec

    row = {"prompt": "a", "seed": 1}
    files = fsspec.filesystem("memory")
    files.pipe("/rows-of-a-plan.jsonl", json.dumps(row).encode())
    try:
        found = list(Plan(MODEL, SampleConfig(), PromptsFile("memory://rows-of-a-plan.jsonl"), 0))
    finally:
        files.rm("/rows-of-a-plan.jsonl")
    assert found == requests(tmp_path, row)
    with pytest.raises(PromptError, match=r"memory://none.txt: there is no such prompts file"):
        list(PromptsFile("memory://none.txt"))
    with pytest.raises(PromptError, match=r"https://a/b.txt is of the kind 'https'; allowed are"):
        list(PromptsFile("https://a/b.txt"))


def test_a_row_may_ask_for_several_seeds(tmp_path):
    given = requests(tmp_path, {"prompt": "a", "seed": 5, "num_seeds": 3}, {"prompt": "a", "num_seeds": 2})
    assert [request.seed for request in given[:3]] == [5, 6, 7]
    singly = requests(tmp_path, {"prompt": "a"}, {"prompt": "a"})
    assert given[3:] == singly
    assert requests(tmp_path, {"prompt": "a"}, run_seed=1)[0].seed != singly[0].seed


def test_metadata_of_the_user_changes_no_clip(tmp_path):
    (plain,) = requests(tmp_path, {"prompt": "a", "seed": 1})
    (tagged,) = requests(tmp_path, {"prompt": "a", "seed": 1, "metadata": {"x": [1, None]}, "meta.y": "z"})
    assert tagged.id == plain.id
    assert tagged.metadata == {"x": [1, None], "y": "z"}


def test_a_scale_beyond_its_rule_is_warned_of_once_with_the_first_row(tmp_path):
    strong = {"guidance": "cfg-zero-star", "guidance_scale": 6}
    rows = [
        {"prompt": "a", "guidance_scale": 8},
        {"prompt": "b", **strong},
        {"prompt": "c", "guidance_scale": 5, "guidance": "cfg-zero-star"},
        {"prompt": "d", **strong, "num_seeds": 3},
        {"prompt": "e", "guidance_scale": 12},
    ]
    (warning,) = plan(write(tmp_path, *rows)).check().warnings
    assert warning.startswith("3 of 5 rows have a guidance scale beyond what pictures bear with its rule")
    assert "(cfg-zero-star 5, plain 8), the first in " in warning
    assert "line 2: stripes" in warning


def test_shapes_beside_the_trained_ones_are_sampled_with_a_warning(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "a", "height": 48}, {"prompt": "a", "num_frames": 17, "fps": 12.5}]
    asked = plan(write(tmp_path, *rows), ANY_SHAPE)
    assert [request.bucket for request in asked] == ["9x32x32@8", "9x48x32@8", "17x32x32@12.5"]
    (warning,) = asked.check().warnings
    assert warning.startswith("2 of 3 rows ask for shapes that the network was not trained on, such as 17x32x32@12.5")
    assert "the first in" in warning
    assert "line 2; it was trained on 9x32x32@8" in warning
    for row, told in (
        ({"height": 40}, r"line 1: bucket '9x40x32@8': .*height is 40.* use 32 or 48"),
        ({"num_frames": 8}, r"line 1: bucket '8x32x32@8': .*num_frames is 8"),
        ({"bucket": "9x32x32@8", "fps": 8}, r"line 1: it has bucket and fps, which say the same"),
    ):
        with pytest.raises(PromptError, match=told):
            plan(write(tmp_path, {"prompt": "a", **row}), ANY_SHAPE).check()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"steps": True}, "steps: .*true and false are no numbers"),
        ({"solver": "magic"}, "solver: Input should be 'euler'"),
        ({"metadata": 3}, "metadata: Input should be a valid dictionary"),
        ({"num_seeds": 0}, "num_seeds: Input should be greater"),
        ({"guidance_interval": [0.8, 0.2]}, r"guidance_interval: \(0.8, 0.2\) ends before it begins"),
        ({"guidance": "apg", "guidance_interval": [0, 1]}, "guidance_interval: only the rule plain reads it"),
        ({"zero_until": 0.1}, "zero_until: only the rule cfg-zero-star reads it, and guidance is plain"),
        ({"ddim_eta": 0.5}, "ddim_eta: only the solver ddim"),
        ({"solver": "euler", "sde_sigma": 0.5}, "sde_sigma: above 0 the Euler-Maruyama method takes the place"),
        ({"pyramid_delay": 2}, "pyramid_delay: only the schedule pyramid reads it, and schedule is full_sequence"),
        ({"solver": "dopri5", "steps": 20}, "steps: the solver dopri5 chooses its own steps"),
        ({"solver": "dopri5", "schedule": "pyramid"}, "schedule: the solver dopri5 takes one time"),
        ({"tolerance": 0.01}, "tolerance: only the solver dopri5 reads it"),
        ({"grid": "linear_quadratic", "steps": 1}, "steps: the grid linear_quadratic has at least 2"),
        ({"guidance_weights": "master"}, "guidance_weights: guidance_checkpoint is not set"),
        ({"guidance_scale": 1, "negative_prompt": "x"}, "negative_prompt: guidance_scale is 1"),
        ({"schedule": "pyramid"}, "sample.schedule is 'pyramid', but checkpoint was trained with one time"),
        ({"weights": "power-0.5"}, "holds no weights named 'power-0.5'"),
        ({"guidance_checkpoint": "/none"}, "/none"),
        ({"image": "none.png"}, "image none.png cannot be read"),
        ({"prompt": "a" * 100_000}, "prompt: String should have at most 65536 characters"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_row_cannot_have_is_refused_by_row_and_field_or_set_aside(tmp_path, row, told):
    path = write(tmp_path, {"prompt": "a", "seed": 1}, {"prompt": "b", "seed": 2} | row, {"prompt": "c", "seed": 3})
    with pytest.raises(PromptError, match=rf"rows\.jsonl: line 2.*{told}") as caught:
        plan(path).check()
    assert len(str(caught.value)) < 900
    bad_rows = BadRows(are_set_aside=True)
    asked = plan(path, bad_rows=bad_rows)
    summary = asked.check()
    assert [request.prompt for request in asked] == ["a", "c"]
    assert (summary.num_rows, summary.num_requests) == (2, 2)
    assert list(bad_rows.reasons) == [f"{path}: line 2"]
    assert summary.warnings[-1].startswith("1 rows cannot be sampled and are set aside; the first: ")


def test_settings_of_the_job_that_contradict_each_other_are_refused():
    with pytest.raises(CheckpointError, match=r"sample\.ddim_eta: only the solver ddim"):
        check_can_sample(MODEL, SampleConfig(ddim_eta=0.5))
    with pytest.raises(CheckpointError, match=r"sample\.sde_sigma: above 0 the Euler-Maruyama method takes the place"):
        check_can_sample(MODEL, SampleConfig(sde_sigma=0.5, solver="unipc"))
    check_can_sample(MODEL, SampleConfig(ddim_eta=0.5, solver="ddim"))


@pytest.fixture
def weaker(tmp_path, monkeypatch) -> dict[Path, TrainedModel]:
    """Checkpoints in folders of their own, with equal autoencoders."""
    models = {}
    for name, trained in (("same", {}), ("other", {"flow": FlowSpec(path="cosine").model_dump()}), ("self", {})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "autoencoder.safetensors").write_bytes(b"weights")
        model = model_of(buckets=[BUCKET.model_dump()], **trained)
        models[folder] = TrainedModel(**(vars(model) | {"folder": folder, "fingerprint": name}))
    monkeypatch.setattr(checks, "open_model", lambda folder, verify: models[Path(folder)])
    return models


def test_a_weaker_checkpoint_is_of_the_same_flow_and_known_by_what_it_holds(tmp_path, weaker):
    model = weaker[tmp_path / "self"]
    rows = [{"prompt": "a", "seed": 1, "guidance_checkpoint": str(tmp_path / "same")}, {"prompt": "a", "seed": 1}]
    asked = plan(write(tmp_path, *rows), model)
    guided, plain = asked
    assert guided.weaker is not None
    assert guided.weaker.fingerprint == "same"
    assert guided.id != plain.id
    assert asked.check().weaker == {"same"}
    (moved,) = plan(write(tmp_path, rows[1]), model, guidance_checkpoint=tmp_path / "same")
    assert moved.id == guided.id
    with pytest.raises(PromptError, match=r"line 1: sample\.guidance_checkpoint is .*other, but its path differs"):
        plan(write(tmp_path, rows[0] | {"guidance_checkpoint": str(tmp_path / "other")}), model).check()
    (tmp_path / "same" / "autoencoder.safetensors").write_bytes(b"others")
    with pytest.raises(PromptError, match=r"its autoencoder differs"):
        plan(write(tmp_path, rows[0]), model).check()
    assert file_sha256(tmp_path / "same" / "autoencoder.safetensors")


@pytest.fixture
def others(tmp_path, monkeypatch) -> dict[str, SampledModel]:
    """Checkpoints that rows may name, by their folders."""
    shapes = [BUCKET.model_dump()], [BUCKET.model_dump() | {"num_frames": 5}]
    frame_times = {"flow": FlowSpec(times_per="frame").model_dump()}
    models: dict[str, SampledModel] = {}
    for name, trained in (
        ("adapted", {"buckets": shapes[0]}),
        ("shorter", {"buckets": shapes[1]} | frame_times),
        ("own", {"buckets": shapes[0]}),
    ):
        folder, fingerprint = tmp_path / name, MODEL.fingerprint if name == "own" else name
        models[str(folder)] = TrainedModel(
            **(vars(model_of(**trained)) | {"folder": folder, "fingerprint": fingerprint})
        )

    def opened(folder: Path) -> SampledModel:
        if str(folder) not in models:
            raise CheckpointError(f"{folder} is no checkpoint")
        return models[str(folder)]

    monkeypatch.setattr("pipeline.sample.plan.open_model", opened)
    return models


def test_a_row_with_a_checkpoint_of_its_own_is_the_clip_of_a_job_of_that_checkpoint(tmp_path, others):
    row: dict[str, Any] = {"prompt": "a", "seed": 1, "steps": 7}
    names = list(others)
    path = write(tmp_path, row, *(row | {"checkpoint": name} for name in names))
    plain, adapted, shorter = plan(path)  # the last one is that of the job
    for made, name in ((adapted, names[0]), (shorter, names[1])):
        (of_job,) = plan(write(tmp_path, row, name="one.jsonl"), others[name])
        assert made.id == of_job.id != plain.id
        assert made.checkpoint is not None
        assert (made.checkpoint.folder, made.checkpoint.fingerprint) == (name, Path(name).name)
        assert of_job.checkpoint is None
    assert plain.checkpoint is None
    assert shorter.bucket == "5x32x32@8"  # its own default
    summary = plan(path).check()
    assert summary.models.keys() == set(names)
    assert len(summary.warnings) == 1
    assert "1 clips are those of earlier rows" in summary.warnings[0]
    batches = list(batches_of([plain, adapted, adapted, plain], 2))
    assert [[each.checkpoint for each in batch] for batch in batches] == [[adapted.checkpoint] * 2, [None] * 2]


def test_what_a_row_asks_for_is_checked_with_its_own_checkpoint(tmp_path, others):
    adapted, shorter, _ = others
    pyramid = {"prompt": "a", "schedule": "pyramid"}
    assert requests(tmp_path, pyramid | {"checkpoint": shorter})
    for row, message in (
        (pyramid | {"checkpoint": adapted}, r"line 1: sample\.schedule is 'pyramid', but .*adapted was trained"),
        ({"prompt": "a", "checkpoint": "/none"}, r"line 1: checkpoint /none: /none is no checkpoint"),
        ({"prompt": "a", "checkpoint": 3}, r"line 1 is not a prompt: checkpoint: Input should be a valid string"),
        ({"prompt": "a", "checkpoint": adapted, "weights": "x"}, r"line 1: .*holds no weights named 'x'"),
    ):
        with pytest.raises(PromptError, match=message):
            requests(tmp_path, row)
    bad = BadRows(are_set_aside=True)
    path = write(
        tmp_path, {"prompt": "a", "checkpoint": "/none"}, {"prompt": "a"}, {"prompt": "a", "checkpoint": adapted}
    )
    assert [each.checkpoint and each.checkpoint.folder for each in plan(path, bad_rows=bad)] == [None, adapted]
    assert list(bad.reasons) == [f"{path}: line 1"]


def test_rows_are_planned_one_at_a_time(tmp_path):
    """Memory does not grow with the file: the first request is there before the last row is read."""
    path = write(tmp_path, *({"prompt": "a", "seed": seed} for seed in range(5000)))
    content = path.read_bytes()
    path.write_bytes(content + b"broken\n")
    assert next(iter(plan(path))).seed == 0
    with pytest.raises(PromptError, match="line 5001"):
        plan(path).check()
