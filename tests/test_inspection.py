"""Looking at a dataset: counts that add up, a page that holds everything and runs nothing it was given."""

import base64
import io
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from safetensors.torch import save
from typer.testing import CliRunner

from data.curation.ledger import LedgerCounts, Rejection, reject, write_rejections
from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER, ClipRecord
from data.dataset.index import read_index, write_index
from data.dataset.manifest import LatentStats, Manifest, count_buckets
from data.dataset.reader import PayloadReader
from data.dataset.shards import write_shard
from data.dataset.survey import MAX_BARS, numeric_bars, pick_rows, survey_dataset
from data.errors import DatasetError
from data.video.codec import encode_clip
from launch.__main__ import app
from launch.config import ConfigError
from launch.inspect import describe_folder, show_folder
from pipeline.report.contact_sheet import CAPTION_LINES, THUMB_PIXELS, wrap
from pipeline.report.dataset_page import measure_channels
from pipeline.report.pages import visible
from testing.records import made_up_clip

WIDE = Bucket(num_frames=9, height=32, width=64, fps=30000 / 1001)
SMALL = Bucket(num_frames=5, height=32, width=32, fps=8)
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


def record(number: int, bucket: Bucket = SMALL, **changes: object) -> ClipRecord:
    return made_up_clip(number, bucket).model_copy(update=changes)


def colour_clip(bucket: Bucket, colour: tuple[int, int, int]) -> bytes:
    frames = np.broadcast_to(np.array(colour, np.uint8), (bucket.num_frames, bucket.height, bucket.width, 3))
    return encode_clip(frames, bucket.fps)


def write_dataset(
    folder: Path, samples: list[tuple[ClipRecord, bytes]], rejections: tuple[Rejection, ...] = (), **changes: object
) -> Path:
    """A finished dataset of one shard; its quarantine holds `rejections`."""
    kind = str(changes.get("kind", "clips"))
    shard, rows = write_shard(folder / "shard-00000.tar", samples, VIDEO_MEMBER if kind == "clips" else LATENT_MEMBER)
    write_index(folder, rows)
    write_rejections(folder / "quarantine.jsonl", rejections)
    used = len({clip.source for clip, _ in samples})
    manifest = Manifest(
        kind=kind,
        fingerprint="",
        buckets=count_buckets(rows),
        num_samples=len(samples),
        shards=[shard],
        ledger=LedgerCounts(sources=used + len(rejections), shards=used, filtered=0, quarantine=len(rejections)),
    )
    text = manifest.model_copy(update=changes).model_dump_json()
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Forty clips of two shapes, a quarter of them for validation, and three broken sources."""
    samples = []
    for number in range(40):
        bucket = WIDE if number % 5 == 0 else SMALL
        split = "validation" if number % 4 == 0 else "train"
        decoder = "pyav" if number < 10 else "decord"
        clip = record(number, bucket, split=split, decoder=decoder, caption="x" * (number + 1))
        samples.append((clip, colour_clip(bucket, (6 * number, 255 - 6 * number, 128))))
    rejections = (
        reject("a.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("b.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("c.mp4", "read", "empty_file", "the file is empty"),
    )
    return write_dataset(tmp_path_factory.mktemp("mixed") / "run" / "clips", samples, rejections)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self.comments: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open.append(tag)
        self.texts.append((tag, ""))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        tag = self._open[-1] if self._open else ""
        self.texts.append((tag, data))

    def handle_comment(self, data):
        self.comments.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_in(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text.strip()]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())


def test_every_count_adds_up(mixed):
    survey = survey_dataset(mixed)
    rows = read_index(mixed)
    assert survey.manifest.num_samples == len(rows) == 40
    assert [(b.bucket, b.num_samples, b.num_train, b.num_validation) for b in survey.manifest.buckets] == [
        (SMALL, 32, 24, 8),
        (WIDE, 8, 6, 2),
    ]
    for histogram in survey.histograms:
        assert sum(bar.count for bar in histogram.bars) == 40, histogram.name
        assert len({bar.label for bar in histogram.bars}) == len(histogram.bars) <= MAX_BARS
    length, size, source, _ = survey.histograms
    assert {bar.label: bar.count for bar in length.bars} == {"0.3": 8, "0.625": 32}
    assert [(bar.label, bar.count) for bar in size.bars] == [("32 x 32", 32), ("32 x 64", 8)]
    assert [(bar.label, bar.count) for bar in source.bars] == [("128 x 128", 32), ("128 x 256", 8)]
    assert survey.splits == Counter(row.split for row in rows)
    assert survey.decoders == {"decord": 30, "pyav": 10}
    assert survey.num_captions == 40
    assert [(entry.example.source, entry.example.reason, entry.count) for entry in survey.left_out] == [
        ("a.mp4", "undecodable", 2),
        ("c.mp4", "empty_file", 1),
    ]


@given(st.one_of(st.lists(st.integers(0, high), min_size=1, max_size=200) for high in (50, 2**40)), st.booleans())
def test_bars_hold_every_value_once(values, whole):
    bars = numeric_bars(np.array(values, np.int64) if whole else np.array(values) / 8)
    assert sum(bar.count for bar in bars) == len(values)
    assert len(bars) <= MAX_BARS
    assert len({bar.label for bar in bars}) == len(bars)


def test_bars_are_round_and_a_long_tail_shares_the_last():
    bars = numeric_bars(np.array([*range(100)] * 10 + [5000]))
    assert [(bar.label, bar.count) for bar in bars] == [
        *((f"{10 * n} to {10 * n + 9}", 100) for n in range(10)),
        ("100 and more", 1),
    ]
    assert [(bar.label, bar.count) for bar in numeric_bars(np.array([3, 1, 3]))] == [("1", 1), ("3", 2)]
    assert numeric_bars(np.array([], np.int64)) == ()
    nearly_equal = np.array([17 / 29.97, 17 * 1001 / 30000, 17 / 8])
    assert [(bar.label, bar.count) for bar in numeric_bars(nearly_equal)] == [("0.567", 2), ("2.125", 1)]
    tenths = numeric_bars(np.arange(30) / 10)  # 0.3 / 0.1 is less than 3
    assert [(bar.label, bar.count) for bar in tenths] == [(f"{n / 2:g} to {n / 2 + 0.5:g}", 5) for n in range(6)]


def test_the_commonest_captions_are_found_and_the_first_of_equals_comes_first(tmp_path):
    captions = ["b", "a", "c", "a", "d", "b"]
    samples = [(record(number, caption=caption), b"x") for number, caption in enumerate(captions)]
    survey = survey_dataset(write_dataset(tmp_path, samples))
    assert survey.captions == {"b": 2, "a": 2, "c": 1}
    assert list(survey.captions) == ["b", "a", "c"]
    assert survey.num_captions == 4


def test_rows_are_chosen_evenly(mixed, monkeypatch):
    everything = list(read_index(mixed))
    assert pick_rows(mixed, 1000) == everything
    assert pick_rows(mixed, 4) == [everything[place] for place in (0, 13, 26, 39)]
    assert pick_rows(mixed, 1) == everything[:1]
    monkeypatch.setattr("data.dataset.survey.BATCH_ROWS", 7)
    assert pick_rows(mixed, 4) == [everything[place] for place in (0, 13, 26, 39)]


def test_the_words_of_a_dataset(mixed):
    lines = describe_folder(mixed).splitlines()
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


def test_the_page_alone_holds_the_clips(mixed, tmp_path):
    page_path, sheet_path = show_folder(mixed, tmp_path / "look", 6)
    page = Page(page_path)
    rows, reader = pick_rows(mixed, 6), PayloadReader(mixed)
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
    assert "mend or replace the file, then run `shard` with --retry" in cells
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


def test_a_caption_on_the_sheet_is_cut_to_its_cell():
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    for text in ("a", "", "one two three four five six seven eight nine ten", "W" * 300, "one " + "W" * 300):
        lines = wrap(text, font, 100, 2)
        assert len(lines) <= 2
        assert all(font.getlength(line) <= 100 for line in lines)
        assert text.startswith(lines[0] if lines else "")
        assert " ".join(lines) == text or lines[-1].endswith("…")


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
    with pytest.raises(ConfigError, match="is no dataset, and a page shows only those"):
        show_folder(tmp_path, tmp_path / "look", 24)


def test_the_command(mixed, tmp_path):
    page_dir = tmp_path / "look"
    done = CliRunner().invoke(app, ["inspect", str(mixed), "--html", str(page_dir), "--clips", "3"])
    assert done.exit_code == 0, done.output
    assert f"wrote {page_dir / 'index.html'} (" in done.output
    assert len(Page(page_dir / "index.html").all("video")) == 3
    with Image.open(io.BytesIO((page_dir / "contact_sheet.png").read_bytes())) as sheet:
        assert sheet.height == 2 * 12 + THUMB_PIXELS + 17 * CAPTION_LINES
    (tmp_path / "file").touch()
    refused = CliRunner().invoke(app, ["inspect", str(mixed), "--html", str(tmp_path / "file")])
    assert refused.exit_code == 1
    assert "error:" in refused.output
    assert CliRunner().invoke(app, ["inspect", str(mixed), "--clips", "0"]).exit_code == 2
