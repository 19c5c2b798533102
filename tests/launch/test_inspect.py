"""Looking at a dataset: counts that add up, a page that holds everything and runs nothing it was given."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.errors import DatasetError
from launch.commands import app
from launch.inspect import describe_folder, show_folder
from launch.overrides import ConfigError
from pipeline.report.contact_sheet import CAPTION_LINES, THUMB_PIXELS
from testing.datasets import SMALL, WIDE, record, write_dataset
from testing.html_page import Page


def test_the_words_of_a_dataset(mixed_dataset):
    lines = describe_folder(mixed_dataset).splitlines()
    assert "  splits      train 30, validation 10" in lines
    assert "  decoders    decord 30, pyav 10" in lines
    assert "  sources     43 = 40 in shards + 0 filtered + 3 in quarantine" in lines
    table = [line.split() for line in lines[lines.index(next(x for x in lines if "buckets" in x)) :]]
    assert table[1] == [SMALL.name, "32", "80.0", "%", "24", "8"]
    assert table[2] == [WIDE.name, "8", "20.0", "%", "6", "2"]
    sizes = [
        line.split() for line in lines[lines.index("  source      height x width in pixels, before cutting") + 1 :]
    ]
    assert [(line[:3], line[3]) for line in sizes[:2]] == [(["128", "x", "128"], "32"), (["128", "x", "256"], "8")]
    ends = {line.index(" █") for line in lines if " █" in line}
    assert len(ends) == 1, "the bars of all histograms begin in one column"


def rewrite_index(folder: Path, change) -> None:
    path = folder / "index.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def column(name: str, values: list) -> object:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


DAMAGE = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it is not a finished dataset; make it first"),
    "no index": (lambda folder: (folder / "index.parquet").unlink(), r"holds no index\.parquet although it has"),
    "cut index": (
        lambda folder: (folder / "index.parquet").write_bytes((folder / "index.parquet").read_bytes()[:500]),
        r"index\.parquet is damaged \(.*\); make .* again",
    ),
    "rows missing": (
        lambda folder: rewrite_index(folder, lambda table: table.slice(0, 2)),
        "has 2 rows, but the manifest counts 3 samples",
    ),
    "column missing": (
        lambda folder: rewrite_index(folder, lambda table: table.drop_columns(["fps", "split"])),
        r"is damaged \(it lacks fps, split\)",
    ),
    "empty cell": (lambda folder: rewrite_index(folder, column("height", [32, None, 32])), "is damaged"),
    "other type": (lambda folder: rewrite_index(folder, column("width", ["a", "b", "c"])), "is damaged"),
    "no UTF-8": (
        lambda folder: rewrite_index(
            folder, column("caption", pa.array([b"\xff", b"b", b"c"]).view(pa.string()))
        ),
        "is damaged",
    ),
    "no size": (lambda folder: rewrite_index(folder, column("fps", [8.0, 0.0, 8.0])), "has a clip without a shape"),
    "ledger": (
        lambda folder: (folder / "quarantine.jsonl").write_text("{}\n", encoding="utf-8"),
        r"quarantine\.jsonl: line 1 is damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_dataset_is_named(tmp_path, name):
    damage, message = DAMAGE[name]
    folder = write_dataset(tmp_path / "clips", [(record(number), b"x") for number in range(3)])
    assert describe_folder(folder)
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        describe_folder(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(DatasetError, match=message):
        show_folder(folder, tmp_path / "look", 24)
    assert not (tmp_path / "look").exists()


def test_what_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; name a run, a dataset"):
        describe_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a run, a dataset"):
        describe_folder(tmp_path)
    with pytest.raises(ConfigError, match="is no dataset, and a page shows only datasets"):
        show_folder(tmp_path, tmp_path / "look", 24)


def test_the_command(mixed_dataset, tmp_path):
    page_dir = tmp_path / "look"
    done = CliRunner().invoke(app, ["inspect", str(mixed_dataset), "--html", str(page_dir), "--clips", "3"])
    assert done.exit_code == 0, done.output
    assert f"wrote {page_dir / 'index.html'} (" in done.output
    assert len(Page(page_dir / "index.html").all("video")) == 3
    with Image.open(io.BytesIO((page_dir / "contact_sheet.png").read_bytes())) as sheet:
        assert sheet.height == 2 * 12 + THUMB_PIXELS + 17 * CAPTION_LINES
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, ["inspect", str(mixed_dataset), "--html", str(tmp_path / "file")])
    assert refused.exit_code == 1
    assert "error:" in refused.output
    assert CliRunner().invoke(app, ["inspect", str(mixed_dataset), "--clips", "0"]).exit_code == 2
