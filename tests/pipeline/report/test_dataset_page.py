"""The page of a dataset: self-contained, complete, and safe for hostile captions."""

import base64
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from data.curation.ledger import Rejection, reject
from data.dataset.index import read_index
from data.dataset.manifest import LatentStats, read_manifest
from data.dataset.reader import PayloadReader
from data.dataset.survey import pick_rows, survey_dataset
from data.errors import DatasetError
from launch.inspect import describe_folder, show_folder
from pipeline.ingest.commit import ShardCommit
from pipeline.ingest.measured import measured_spans
from pipeline.ingest.reports import SourceReport
from pipeline.ingest.thresholds import MeasuredSpan
from pipeline.report.contact_sheet import CAPTION_LINES, THUMB_PIXELS
from pipeline.report.dataset_page import NOTHING_MEASURED, measure_channels
from pipeline.report.pages import visible
from pipeline.run.commits import publish_commit
from pipeline.run.stage_record import StageRecord
from testing.datasets import SMALL, WIDE, colour_clip, record, write_dataset
from testing.html_page import Page

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</bdi></figcaption></figure><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' autofocus onfocus='alert(1)",
    "--><iframe src=javascript:alert(1)></iframe><!--",
    "]]></style><script>alert(1)</script>",
    "{{ 7 * 7 }} {% include 'report.html' %}",
    "safe \u202egnp.exe\u202c \u2066isolate\u2069 \u200e\u061c end",
    "bell \x07 escape \x1b[31mred\x1b]0;title\x07 null \x00 delete \x7f c1 \x9b31m",
    "line\u2028paragraph\u2029feed\nreturn\rtab\t\ufeffmark",
    "&lt;b&gt; &#60;script&#62; &amp;",
    "عربى 日本語 👩‍👩‍👧 نمی‌خواهم",
]


def test_the_page_alone_holds_the_clips(mixed_dataset, tmp_path):
    page_path, sheet_path = show_folder(mixed_dataset, tmp_path / "look", 6)
    page = Page(page_path)
    rows, reader = pick_rows(mixed_dataset, 6), PayloadReader(mixed_dataset)
    prefix = "data:video/mp4;base64,"
    videos = [video["src"] or "" for video in page.all("video")]
    assert [base64.b64decode(video.removeprefix(prefix)) for video in videos] == [reader.read(row) for row in rows]
    assert [name for name, attributes in page.elements for key in attributes if key in ("href", "xlink:href", "src")
            and not (attributes[key] or "").startswith(("#", "data:"))] == []  # fmt: skip
    assert "default-src 'none'" in (page.all("meta")[2]["content"] or "")
    assert page.text_in("h1") == ["run/clips"]
    assert len(page.all("svg")) == 4
    assert "128 x 128: 32, 128 x 256: 8" in [division.get("aria-label") for division in page.all("div")]
    cells = page.text_in("td")
    assert cells[:10] == [SMALL.name, "32", "80.0 %", "24", "8", WIDE.name, "8", "20.0 %", "6", "2"]
    assert "43 sources = 40 in shards + 0 filtered + 3 in quarantine." in page.text
    assert "repair or replace the file, then run `shard` with --retry" in cells
    with Image.open(sheet_path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for number, row in enumerate(rows):  # the middle of each clip's first thumb has its colour
        clip = int(row.key, 16)
        line, column = divmod(number, 3)
        y = 12 + line * (THUMB_PIXELS + 17 * CAPTION_LINES + 12) + THUMB_PIXELS // 2
        x = 12 + column * (3 * THUMB_PIXELS + 4 + 12) + THUMB_PIXELS // 2
        assert np.abs(pixels[y, x] - [6 * clip, 255 - 6 * clip, 128]).max() <= 6


def hidden(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in "\n\u200c\u200d"]


def test_hostile_captions_are_text(tmp_path):
    video = colour_clip(SMALL, (10, 20, 30))

    def page_of(folder: Path, captions: list[str]) -> Page:
        samples = [
            (record(n, caption=caption, source=f"{n}{caption}.mp4"), video) for n, caption in enumerate(captions)
        ]
        rejections = tuple(
            Rejection(source=text, stage="read", reason=reason, detail=text, retry=text)
            for reason, text in zip(("missing", "failed", "crashed"), captions[-3:], strict=True)
        )
        return Page(show_folder(write_dataset(folder / "run" / "clips", samples, rejections), folder / "look", 99)[0])

    page = page_of(tmp_path / "hostile", HOSTILE)
    harmless = page_of(tmp_path / "harmless", ["x" * len(caption.encode()) for caption in HOSTILE])
    assert page.elements == harmless.elements, "a caption made or changed an element"
    assert page.comments == harmless.comments
    assert page.text_in("bdi")[: 2 * len(HOSTILE) : 2] == [visible(caption) for caption in HOSTILE]
    assert hidden((tmp_path / "hostile" / "look" / "index.html").read_text(encoding="utf-8")) == []
    assert "safe <U+202E>gnp.exe<U+202C> <U+2066>isolate<U+2069> <U+200E><U+061C> end" in page.text
    assert "bell <U+0007> escape <U+001B>[31mred" in page.text
    assert HOSTILE[-1] in page.text  # letters and emoji that need their joiners stay as they are
    words = describe_folder(tmp_path / "hostile" / "run" / "clips")
    assert hidden(words) == []
    assert "such as" in words


def test_a_damaged_clip_is_named_and_the_others_play(tmp_path):
    samples = [(record(number), colour_clip(SMALL, (99, 99, 99))) for number in range(3)]
    samples.append((record(3), b"no video"))
    folder = write_dataset(tmp_path / "clips", samples)
    rows = read_index(folder)
    with (folder / "shard-00000.tar").open("r+b") as shard:
        shard.seek(rows[1].offset)
        shard.write(b"damage")
    page_path, sheet_path = show_folder(folder, tmp_path / "look", 24)
    page = Page(page_path)
    assert len(page.all("video")) == 2
    problems = page.text_in("p")
    assert any(rows[1].key in text and "its checksum differs" in text for text in problems)
    assert any("cannot be shown: it cannot be decoded" in text for text in problems)
    assert sheet_path.is_file()


def test_latents_have_channels_and_say_where_the_clips_are(tmp_path):
    latents = [torch.full((2, 2, 3, 3), float(number)) for number in range(1, 6)]
    for latent in latents:
        latent[1] *= -2
    samples = [(record(number), save({"mean": latent})) for number, latent in enumerate(latents)]
    stats = LatentStats(mean=[2.0, -4.0], std=[1.5, 3.0])
    changes = {"kind": "latents", "latent_stats": stats, "ledger": None}
    folder = write_dataset(tmp_path / "run" / "latents", samples, **changes)
    channels = measure_channels(folder, pick_rows(folder, 24), stats)
    assert [(c.number, c.mean, c.std, c.low, c.high) for c in channels] == [(0, 2, 1.5, 1, 5), (1, -4, 3, -10, -2)]
    written = show_folder(folder, tmp_path / "look", 24)
    assert written == [tmp_path / "look" / "index.html"]
    page = Page(written[0])
    assert page.all("video") == []
    assert page.text_in("td")[:10] == [
        *("0", "2.000", "1.500", "1.000", "5.000"),
        *("1", "-4.000", "3.000", "-10.000", "-2.000"),
    ]
    assert "in the folder clips of the run that encoded them, under the same keys." in page.text
    clips = write_dataset(tmp_path / "run" / "clips", [(record(0), b"x")])
    assert "in run/clips : inspect that folder." in Page(show_folder(folder, tmp_path / "look", 24)[0]).text
    assert f"  clips       {clips}" in describe_folder(folder).splitlines()
    with (folder / "shard-00000.tar").open("r+b") as shard:
        shard.seek(read_index(folder)[1].offset)
        shard.write(b"damage")
    with pytest.raises(DatasetError, match="its checksum differs"):
        show_folder(folder, tmp_path / "look", 24)
    wrong = stats.model_copy(update={"mean": [0.0] * 5, "std": [1.0] * 5})
    with pytest.raises(DatasetError, match="is no latent of 5 channels"):
        measure_channels(folder, pick_rows(folder, 1), wrong)


def test_measures_and_their_thresholds_are_shown(tmp_path):
    """Of clips that are kept and of those that a threshold left out; models' scores too."""
    samples = [(record(number), colour_clip(SMALL, (99, 99, 99))) for number in range(3)]
    folder = write_dataset(tmp_path / "clips", samples)
    assert measured_spans(folder) == NOTHING_MEASURED
    assert "Measures" not in Page(show_folder(folder, tmp_path / "look", 2)[0]).text_in("h2")
    spans = [
        MeasuredSpan(start_seconds=n, measures={"sharpness": 0.1 * n}, scores={"aesthetic": n} if n > 1 else {})
        for n in range(5)
    ]
    left_out = [reject("a.mp4", "filter", "blurred", "it is blurred", n) for n in range(2)]
    commit = ShardCommit(
        input_fingerprint="",
        shard=read_manifest(folder).shards[0],
        rows=[],
        reports=[SourceReport(source="a.mp4", filtered=left_out, measured=spans)],
    )
    publish_commit(folder / "shard-00000.tar", commit)
    settings = {"filters": {"min_sharpness": 0.15}, "models": {"min_aesthetic": 1.5}}
    record_of_stage = StageRecord(stage="shard", build="x", inputs={"config": settings})
    (folder / "stage.json").write_text(record_of_stage.model_dump_json())
    found = measured_spans(folder)
    assert (found.num_spans, found.num_shards) == (5, 1)
    assert [(measured.histogram.name, measured.median) for measured in found.measures] == [
        ("sharpness", 0.2),
        ("aesthetic", 3),
    ]
    page = Page(show_folder(folder, tmp_path / "look", 2)[0])
    assert "Measures" in page.text_in("h2")
    cells = page.text_in("td")
    at = cells.index("sharpness")
    assert cells[at : at + 5] == ["sharpness", "0.004", "0.2", "0.396", "filters.min_sharpness 0.15 left 2 out"]
    assert cells[at + 5] == "aesthetic"
    assert cells[at + 9] == "models.min_aesthetic 1.5 left 0 out"
    (folder / "stage.json").unlink()
    cells = Page(show_folder(folder, tmp_path / "look", 2)[0]).text_in("td")
    assert cells[cells.index("sharpness") + 4] == "none"


def test_nothing_left_out_is_said(tmp_path):
    folder = write_dataset(tmp_path / "clips", [(record(0), colour_clip(SMALL, (1, 2, 3)))])
    assert survey_dataset(folder).left_out == ()
    page = Page(show_folder(folder, tmp_path / "look", 24)[0])
    assert "Nothing was left out." in page.text
    assert "way out" not in page.text
    (folder / "quarantine.jsonl").unlink()
    assert survey_dataset(folder).left_out == ()


def test_a_dataset_without_samples_can_be_looked_at(tmp_path):
    folder = write_dataset(tmp_path / "clips", [], (reject("a.mp4", "read", "empty_file", "the file is empty"),))
    survey = survey_dataset(folder)
    assert (survey.manifest.buckets, survey.splits, survey.num_captions) == ([], {}, 0)
    assert "0 samples" in describe_folder(folder)
    assert "1 sources = 0 in shards" in Page(show_folder(folder, tmp_path / "look", 24)[0]).text


def column(name: str, values: list) -> object:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))
