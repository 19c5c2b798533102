"""The gallery of sampled clips: each clip with its prompt, which is text and never markup."""

from pipeline.report.figures import GalleryClip
from pipeline.report.gallery import write_gallery


def test_every_clip_plays_above_its_escaped_prompt(tmp_path):
    clips = [
        GalleryClip("a circle-01.mp4", "<b>a circle</b>", seed=3, guidance_scale=2.5, right=None),
        GalleryClip("square-02.mp4", "a square", seed=4, guidance_scale=1.0, right=True),
    ]
    write_gallery(tmp_path, clips)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<video") == 2
    assert 'src="a%20circle-01.mp4"' in page
    assert "&lt;b&gt;a circle&lt;/b&gt; <small>seed 3, guidance 2.5</small>" in page
    assert "a square <small>seed 4, guidance 1.0</small>" in page
    assert "<h1>2 clips</h1>" in page
