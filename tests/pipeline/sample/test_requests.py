"""Files of prompts: what they may hold, and how a bad one is refused."""

import json
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.dataset.buckets import Bucket
from data.files.checksums import file_sha256
from data.files.jsonl import publish_jsonl
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples
from pipeline.sample.plan import Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError, format_prompts
from pipeline.sample.requests import PromptRequest, address_of, id_of, prompt_settings
from testing.paths import CASES_DIR
from testing.sampled import GIVEN_FIRST, model_of

BUCKETS = ["17x64x64@8", "9x32x32@8"]
MODEL = model_of(buckets=[Bucket.of_name(name).model_dump() for name in BUCKETS], flow=GIVEN_FIRST)


def read_prompts(path: Path) -> tuple[list[Prompt], list[str]]:
    file = PromptsFile(str(path))
    prompts = [placed.prompt for placed in file]
    assert prompts == [placed.prompt for placed in file]  # as often as need be
    return prompts, file.notes


def plan_of(prompts: list[Prompt], *, unguided: bool = False, **settings: Any) -> Plan:
    placed = [PlacedPrompt(f"row {number}", prompt) for number, prompt in enumerate(prompts, 1)]
    return Plan(MODEL, SampleConfig(**settings), placed, 0, unguided)


def planned(path: Path) -> list[PromptRequest]:
    return list(plan_of(read_prompts(path)[0]))


def test_prompts_files(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(PromptError, match="no such prompts file"):
        read_prompts(path)
    path.write_text("\n\n")
    with pytest.raises(PromptError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(PromptError, match="is not UTF-8"):
        read_prompts(path)
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"promt": "two"}\n')
    with pytest.raises(PromptError, match="line 2 is not a prompt: promt: there is no such column; did you mean"):
        read_prompts(path)
    path.write_text('{"prompt": "one", "seed": 5}\n{"prompt": "two"}\n{"prompt": "two"}\n')
    prompts, warnings = read_prompts(path)
    assert warnings == []
    requests = list(plan_of(prompts, unguided=True))
    assert len({request.id for request in requests}) == 6
    assert requests[0].seed == requests[1].seed == 5
    assert [request.guidance_scale for request in requests] == [3.0, 1.0] * 3
    assert requests[2].seed != requests[4].seed  # equal lines are different clips
    assert list(plan_of(prompts[1:], unguided=True)) == requests[2:]
    assert {request.bucket for request in requests} == {BUCKETS[0]}
    (shaped,) = plan_of([Prompt(prompt="one", seed=5, bucket=BUCKETS[1])])
    assert shaped.bucket == BUCKETS[1]
    assert shaped.id != requests[0].id
    assert {request.bucket for request in plan_of(prompts, bucket=BUCKETS[1])} == {BUCKETS[1]}
    assert {r.id for r in plan_of(prompts, steps=3)}.isdisjoint(r.id for r in requests)


# What a file of the cases holds or says; a prompt that is read is written and read back as it is.
READ = {
    "long.txt": ["a" * 5000],
    "ls.jsonl": ["a red circle\u2028moves left"],
    "nel.txt": ["a red circle moves left", "next line more"],
    "newline.jsonl": ["a red\ncircle  moves\tleft ", "a red circle moves left"],
    "prompts.csv": ["a red circle moves left"],
    "prompts.JSONL": ["a red circle moves left"],
}
REFUSED = {
    "nan.jsonl": r"nan\.jsonl: line 1 is not a prompt: seed: Input should be a finite number",
    "surrogate.jsonl": r"surrogate\.jsonl: line 1 is not a prompt: it contains U\+D83D, which is no character",
}


def test_every_prompts_file_of_the_cases_is_read_as_what_it_is_or_refused_with_its_line(tmp_path):
    found = sorted((CASES_DIR / "prompts").iterdir())
    assert {path.name for path in found} == READ.keys() | REFUSED.keys()
    for path in found:
        if path.name in REFUSED:
            with pytest.raises(PromptError, match=REFUSED[path.name]):
                read_prompts(path)
            continue
        prompts, warnings = read_prompts(path)
        assert [prompt.prompt for prompt in prompts] == READ[path.name]
        assert {prompt.seed for prompt in prompts} == ({1} if prompts[0].seed else {None})
        assert [text.split(": ")[1] for text in warnings] == (
            [
                "2 lines hold line separators other than a line feed, each of which is read as a "
                "space; the first is line 1"
            ]
            if path.name == "nel.txt"
            else []
        )
        assert samples_read_back(tmp_path, prompts) == prompts_of(tmp_path, prompts) == prompts


def samples_read_back(folder, prompts):
    """The prompts as the manifest of a samples folder gives them back."""
    requests = list(plan_of(prompts))
    lines = [SampledClip(file=r.file_name, request=r, num_network_calls=1) for r in requests]
    publish_jsonl(folder / SAMPLES_NAME, lines)
    assert [clip.request for clip in read_samples(folder)] == requests
    return [
        Prompt(prompt=clip.request.prompt, seed=prompt.seed, bucket=prompt.bucket, expect=clip.request.expect)
        for clip, prompt in zip(read_samples(folder), prompts, strict=True)
    ]


def prompts_of(folder, prompts):
    """The prompts as the stage's own prompts.jsonl gives them back."""
    (folder / "prompts.jsonl").write_text("".join(format_prompts(prompts)), encoding="utf-8")
    return read_prompts(folder / "prompts.jsonl")[0]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "p.csv",
            "prompt,sede\na,1\n",
            r"p\.csv: row 2 is not a prompt: sede: there is no such column; did you mean seed",
        ),
        ("p.csv", "prompt,seed\na,one\n", r"p\.csv: row 2 is not a prompt: seed: Input should be a valid integer"),
        ("p.json", '[{"prompt": "a"}, {"prompt": null}]', r"p\.json: row 2 is not a prompt: prompt: .*valid string"),
        ("p.json", '["a"]', r"p\.json, row 1: 'a' is not an object"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "a", "seed": true}', r"line 2 is not a prompt: seed: .*no numbers"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', r"line 1 is not a prompt: the key 'prompt' is there twice"),
        ("p.jsonl", '{"prompt": "a\\u0000b"}', r"line 1 is not a prompt: prompt: .*it contains U\+0000"),
        ("p.JSONL", "a red circle", r"line 1 is not a prompt: Expecting value"),
        ("p.txt", "a\nb\0", r"p\.txt: line 2 is not a prompt: prompt: .*it contains U\+0000"),
        ("p.txt", "a" * 70_000, r"line 1 is not a prompt: prompt: String should have at most 65536 characters"),
        ("p.yaml", "- a", r"p\.yaml: prompts files are text, \.jsonl, .*, not \.yaml"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line_or_row_in_a_short_message(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=told) as caught:
        read_prompts(tmp_path / name)
    assert len(str(caught.value)) < 700


def test_a_line_that_never_ends_is_not_read(tmp_path):
    path = tmp_path / "prompts.txt"
    with path.open("wb") as file:
        file.truncate(2**40)  # of which the disk holds nothing
    with pytest.raises(PromptError, match=r"prompts\.txt: line 1 has 16777216 bytes or more"):
        read_prompts(path)


def test_tables_of_prompts_are_read_by_column(tmp_path):
    expected = [Prompt(prompt="a red circle, moving left", seed=3, bucket="9x32x32@8"), Prompt(prompt="b")]
    (tmp_path / "p.CSV").write_text('prompt,seed,bucket\n"a red circle, moving left",3,9x32x32@8\nb,,\n')
    (tmp_path / "p.json").write_text(
        '[{"prompt": "a red circle, moving left", "seed": 3, "bucket": "9x32x32@8"}, {"prompt": "b"}]'
    )
    assert read_prompts(tmp_path / "p.CSV") == read_prompts(tmp_path / "p.json") == (expected, [])


def test_empty_lines_are_counted(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\nb\r\n\r\n")
    prompts, (warning,) = read_prompts(tmp_path / "p.txt")
    assert [prompt.prompt for prompt in prompts] == ["a", "b"]
    assert warning.endswith("p.txt: 2 lines are empty and were skipped; the first is line 2")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.csv", "prompt,seed\na,1\n\n,\nb,2\n\n", "2 rows are empty and were skipped; the first is row 3"),
        ("p.tsv", "\ufeffprompt\tseed\n\na\t1\n", "row 2 is empty and was skipped"),
        ("p.csv", "\n\nprompt,seed\na,1\n", "2 rows are empty and were skipped; the first is row 1"),
    ],
)
def test_empty_rows_of_a_table_are_counted(tmp_path, name, content, told):
    (tmp_path / name).write_text(content, encoding="utf-8")
    _, warnings = read_prompts(tmp_path / name)
    assert warnings == [f"{tmp_path / name}: {told}"]


def test_prompts_that_give_no_clip_of_their_own_are_counted(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,seed,bucket\na,1,\na,2,\na,1,\nb,1,\na,1,\na,1,9x32x32@8\nc,,\nc,,\n")
    plan = plan_of(read_prompts(path)[0])
    summary = plan.check()
    assert (summary.num_rows, summary.num_requests, len(list(plan))) == (8, 6, 6)
    (warning,) = summary.warnings
    assert warning.startswith("2 clips are those of earlier rows, with equal text, seed and settings")
    assert "asked for again in row 3;" in warning


def test_scales_that_differ_in_a_late_digit_are_other_clips():
    scales = [3.0, 3.0000004, 0.1, 0.1 + 0.2, 1e-7, 1234567.0]
    assert len({address_of("a", 1, scale, "a", "settings", "") for scale in scales}) == len(scales)
    plain = id_of(address_of("a", 1, 3.0, "a", "settings", ""))
    assert plain == blake2b(b"a\x001\x003\x00a\x00settings", digest_size=6).hexdigest()  # as it has always been


PROMPTS = st.lists(
    st.builds(
        Prompt,
        prompt=st.text(st.characters(exclude_characters="\0", codec="utf-8")),
        seed=st.none() | st.integers(-(2**70), 2**70),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda prompt: (prompt.prompt, prompt.seed),
)


@settings(deadline=None)
@given(PROMPTS)
def test_prompts_that_are_written_are_read_back_from_every_file(prompts):
    with TemporaryDirectory() as name:
        folder = Path(name)
        assert prompts_of(folder, prompts) == prompts
        assert samples_read_back(folder, prompts) == prompts
        (folder / "p.json").write_text(
            json.dumps([{"prompt": prompt.prompt, "seed": prompt.seed} for prompt in prompts]), encoding="utf-8"
        )
        assert read_prompts(folder / "p.json")[0] == prompts


@settings(deadline=None)
@given(
    st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(["txt", "jsonl", "json"]),
)
def test_any_file_is_read_or_refused_by_name(content, suffix):
    with TemporaryDirectory() as name:
        path = Path(name) / f"p.{suffix}"
        path.write_bytes(content)
        try:
            prompts, _ = read_prompts(path)
        except PromptError as error:
            text = str(error)
            assert path.name in text, text
            return
        if suffix == "txt":
            words = content.decode("utf-8-sig").split()
            assert [word for prompt in prompts for word in prompt.prompt.split()] == words


def write_image(path: Path, colour: str = "red") -> Path:
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def settings_of(*prompts: Prompt) -> list[dict[str, Any]]:
    return list(prompt_settings([PlacedPrompt("", prompt) for prompt in prompts]))


def test_a_prompt_without_options_keeps_its_address():
    (request,) = plan_of([Prompt(prompt="a red circle")])
    assert request.seed == 2871900634  # as it has always been
    old = f"a red circle\x002871900634\x003\x0017x64x64@8\x00{MODEL.fingerprint} {OLD_SETTINGS}"
    assert request.id == blake2b(old.encode(), digest_size=6).hexdigest()
    assert settings_of(Prompt(prompt="a red circle")) == [
        {"prompt": "a red circle", "seed": None, "bucket": None, "expect": None}
    ]


OLD_SETTINGS = (
    '{"solver":"heun","steps":20,"shift":1.0,"bucket":null,"schedule":"full_sequence","guidance_scale":3.0,'
    '"guidance":"plain","negative_prompt":null,"sde_sigma":0.0,"weights":"ema","precision":"auto"}'
)
"""What an address has had of the default settings from the first."""


def test_an_image_is_found_beside_the_prompts_file_or_by_its_absolute_path(tmp_path):
    image = write_image(tmp_path / "start.png")
    (tmp_path / "p.csv").write_text(f"prompt,image\na dot,start.png\na dot,{image}\na dot,\n")
    prompts, warnings = read_prompts(tmp_path / "p.csv")
    assert [prompt.image for prompt in prompts] == [str(image), str(image), None]
    assert warnings == []
    requests = planned(tmp_path / "p.csv")
    assert [request.image and request.image.sha256 for request in requests] == [file_sha256(image)] * 2 + [None]
    assert len({request.id for request in requests}) == 3  # equal lines get seeds of their own
    publish_jsonl(tmp_path / SAMPLES_NAME, [SampledClip(file="a.mp4", request=requests[0], num_network_calls=1)])
    assert read_samples(tmp_path)[0].request == requests[0]
    assert prompts_of(tmp_path, prompts) == prompts


def test_the_address_of_a_clip_has_what_its_image_holds_and_not_where_it_is(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dot", "image": "start.png"}')
    write_image(tmp_path / "start.png")
    before, settings_before = planned(tmp_path / "p.jsonl"), settings_of(*read_prompts(tmp_path / "p.jsonl")[0])
    (tmp_path / "other").mkdir()
    write_image(tmp_path / "other" / "copy.png")
    (tmp_path / "other.jsonl").write_text('{"prompt": "a dot", "image": "other/copy.png"}')
    moved = planned(tmp_path / "other.jsonl")
    assert (moved[0].id, moved[0].seed) == (before[0].id, before[0].seed)
    assert settings_of(*read_prompts(tmp_path / "other.jsonl")[0]) == settings_before
    write_image(tmp_path / "start.png", "blue")
    changed = planned(tmp_path / "p.jsonl")
    assert changed[0].id != before[0].id
    assert settings_of(*read_prompts(tmp_path / "p.jsonl")[0]) != settings_before
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a dot", "seed": 1}\n{"prompt": "a dot", "seed": 1, "image": "start.png"}'
    )
    plain, given = planned(tmp_path / "p.jsonl")
    assert plain.id != given.id


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (
            "none.png",
            r"line 2: image none\.png cannot be read \(No such file or directory\); name a file by its absolute",
        ),
        (".", r"line 2: image \. cannot be read \(Is a directory\)"),
        ("text.png", r"line 2: image text\.png: it cannot be decoded .*; save it anew, as PNG or JPEG"),
        ("cut.png", r"line 2: image cut\.png: it cannot be decoded .*; save it anew, as PNG or JPEG"),
        ("", r"line 2: image  cannot be read \(Is a directory\)"),
        ("~nobody-of-this-name/a.png", r"line 2: image ~nobody.* begins with ~, and there is no such user"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused_with_its_line(tmp_path, image, told):
    (tmp_path / "text.png").write_text("a red circle")
    whole = write_image(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:-40])
    lines = [{"prompt": "a dot", "image": name} for name in ("whole.png", image)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(PromptError, match=r"p\.jsonl: " + told):
        read_prompts(tmp_path / "p.jsonl")


def test_an_image_that_goes_away_before_the_job_is_planned_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dot", "image": "start.png"}')
    image = write_image(tmp_path / "start.png")
    prompts, _ = read_prompts(tmp_path / "p.jsonl")
    image.unlink()
    with pytest.raises(
        PromptError, match=r"file .*start\.png cannot be read \(No such file or directory\); copy it back"
    ):
        list(plan_of(prompts))
