"""The gallery of sampled clips: what the page holds, and that prompts are text and never markup."""

import json
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.report.figures import GalleryClip
from pipeline.report.gallery import GallerySide, write_comparison, write_gallery
from testing.html_page import Page


def clip(file: str, prompt: str, seed: int = 3, scale: float = 2.5, right: bool | None = None) -> GalleryClip:
    return GalleryClip(file, prompt, seed, scale, right=right, bucket="9x32x48@8")


def data_of(path: Path) -> dict[str, Any]:
    page = Page(path)
    (text,) = (text for tag, text in page.texts if tag == "script" and text.startswith("{"))
    return json.loads(text)


def test_every_clip_is_on_the_page_with_its_prompt(tmp_path):
    folder = tmp_path / "run" / "samples"
    write_gallery(folder, [clip("a circle-01.mp4", "<b>a circle</b>"), clip("b.mp4", "a square", 4, 1.0, right=True)])
    data = data_of(folder / "index.html")
    assert data["sides"] == ["run/samples"]
    assert data["clips"] == [
        {
            "files": ["a%20circle-01.mp4"],
            "prompt": "<b>a circle</b>",
            "seed": 3,
            "scale": 2.5,
            "bucket": "9x32x48@8",
            "height": 32,
            "width": 48,
            "right": None,
        },
        {
            "files": ["b.mp4"],
            "prompt": "a square",
            "seed": 4,
            "scale": 1.0,
            "bucket": "9x32x48@8",
            "height": 32,
            "width": 48,
            "right": True,
        },
    ]


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
