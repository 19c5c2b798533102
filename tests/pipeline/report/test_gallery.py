"""The gallery of sampled clips: what the page holds, and that prompts are text and never markup."""

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.report.figures import GalleryClip
from pipeline.report.gallery import GallerySide, write_comparison, write_gallery
from testing.html_page import Page


def clip(file: str, prompt: str, seed: int = 3, scale: float = 2.5, **more: Any) -> GalleryClip:
    fields: dict[str, Any] = {"right": None, "bucket": "9x32x48@8"} | more
    return GalleryClip(file, prompt, seed, scale, **fields)


def data_of(path: Path) -> dict[str, Any]:
    page = Page(path)
    (text,) = (text for tag, text in page.texts if tag == "script" and text.startswith("{"))
    return json.loads(text)


def test_every_clip_is_on_the_page_with_what_it_came_from(tmp_path):
    folder = tmp_path / "run" / "samples"
    settings = {"steps": 4, "guidance_scale": 9.0, "bucket": "other"}
    write_gallery(
        folder,
        [
            clip("a circle-01.mp4", "<b>a circle</b>", settings=settings, provenance={"sha256": "ab\u202e"}),
            clip("b.mp4", "a square", 4, 1.0, right=True, settings=settings, scores={"motion": 0.1234567}),
        ],
    )
    data = data_of(folder / "index.html")
    assert data["sides"] == ["run/samples"]
    assert (data["settings"], data["scores"]) == ([{"steps": 4}], ["motion"])
    shape = {"bucket": "9x32x48@8", "height": 32, "width": 48, "settings": [0]}
    assert data["clips"] == [
        {
            "files": ["a%20circle-01.mp4"],
            "prompt": "<b>a circle</b>",
            "seed": 3,
            "scales": [2.5],
            "right": [None],
            "provenance": [{"sha256": "ab<U+202E>"}],
            "scores": [],
        }
        | shape,
        {
            "files": ["b.mp4"],
            "prompt": "a square",
            "seed": 4,
            "scales": [1.0],
            "right": [True],
            "provenance": [{}],
            "scores": [0.12346],
        }
        | shape,
    ]


def test_a_page_elsewhere_refers_to_the_clips_by_relative_paths(tmp_path):
    write_gallery(tmp_path / "the samples", [clip("a.mp4", "a")], tmp_path / "pages" / "all.html")
    assert data_of(tmp_path / "pages" / "all.html")["clips"][0]["files"] == ["../the%20samples/a.mp4"]


def test_prompts_cannot_end_the_script_or_hide_characters(tmp_path):
    write_gallery(tmp_path, [clip("a.mp4", "</script><script>alert(1)</script> \u202e<!--")])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert data_of(tmp_path / "index.html")["clips"][0]["prompt"] == "</script><script>alert(1)</script> <U+202E><!--"


def test_only_the_script_of_the_page_may_run(tmp_path):
    write_gallery(tmp_path, [])
    page = Page(tmp_path / "index.html")
    (policy,) = (attrs["content"] for tag, attrs in page.elements if tag == "meta" and "http-equiv" in attrs)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    script = text[text.rindex("<script>") + len("<script>") : text.rindex("</script>")]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_two_folders_side_by_side_show_clips_of_equal_requests(tmp_path):
    one = GallerySide(tmp_path / "old run" / "samples", [clip("a.mp4", "a"), clip("b.mp4", "b"), clip("c.mp4", "c", 9)])
    other = GallerySide(tmp_path / "new" / "samples", [clip("y.mp4", "b"), clip("x.mp4", "a"), clip("z.mp4", "c", 8)])
    assert write_comparison(tmp_path / "pages" / "both.html", one, other) == 2
    data = data_of(tmp_path / "pages" / "both.html")
    assert data["sides"] == ["old run/samples", "new/samples"]
    assert [shown["files"] for shown in data["clips"]] == [
        ["../old%20run/samples/a.mp4", "../new/samples/x.mp4"],
        ["../old%20run/samples/b.mp4", "../new/samples/y.mp4"],
    ]


def test_two_clips_have_the_scores_of_each_and_their_difference(tmp_path):
    one = GallerySide(tmp_path / "a", [clip("a.mp4", "a", scores={"motion": 0.25, "area": 1.0}, right=True)])
    other = GallerySide(tmp_path / "b", [clip("b.mp4", "a", scale=1.0, scores={"motion": 0.75}, right=False)])
    assert write_comparison(tmp_path / "both.html", one, other) == 0
    assert write_comparison(tmp_path / "both.html", one, other, match_settings=False) == 1
    data = data_of(tmp_path / "both.html")
    (pair,) = data["clips"]
    assert dict(zip(data["scores"], pair["scores"], strict=True)) == {
        "motion, left": 0.25,
        "area, left": 1.0,
        "motion, right": 0.75,
        "motion, right - left": 0.5,
    }
    assert (pair["right"], pair["scales"]) == ([True, False], [2.5, 1.0])
