"""Pages in a browser, from files: with clicks and keys, and without errors in the console."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.video.codec import encode_clip
from launch.gallery import show_samples, show_side_by_side
from pipeline.report.comparison_page import ComparisonPage, FigureRow, NearestPair, Tile, write_comparison_page
from pipeline.report.gallery import write_gallery
from pipeline.report.sweep_page import Front, Point, SweepClip, SweepPage, SweepRow, write_sweep_page
from pipeline.sample.outputs import read_samples
from testing.browser import BrowserPage, browser_page
from testing.clips import moving_shapes
from testing.galleries import write_many_samples

pytestmark = pytest.mark.browser
NUMBER = 10_000
MANY = "document.querySelectorAll('#space figure').length > 5"
PLAYS = "[...document.querySelectorAll('#space video')].some((video) => video.readyState >= 2 && !video.paused)"


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return write_many_samples(tmp_path_factory.mktemp("it's") / "run" / "the samples", NUMBER)


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserPage]:
    with browser_page() as shown:
        yield shown


@pytest.fixture
def gallery(samples, browser) -> Iterator[BrowserPage]:
    if not (samples / "index.html").is_file():
        show_samples(samples, None)
    browser.open(samples / "index.html")
    yield browser
    assert browser.problems == []


def prompts(shown: BrowserPage) -> list[str]:
    """The prompts of the tiles there are, in their order on the page."""
    found = shown.page.evaluate(
        "[...document.querySelectorAll('#space figure')].map((tile) => [Number(tile.dataset.number), tile.title])"
    )
    return [title for _, title in sorted(found)]


def test_ten_thousand_clips_open_play_and_scroll(gallery):
    page = gallery.page
    started = time.monotonic()
    page.reload(wait_until="domcontentloaded")
    gallery.wait_until(PLAYS)
    print(f"{NUMBER} clips: the first plays after {time.monotonic() - started:.2f} s")  # judged by benchmarks.gallery
    assert page.inner_text("#count") == f"{NUMBER} clips"
    page.evaluate("scroller.scrollTop = space.clientHeight / 2")
    gallery.wait_until(f"{MANY} && !document.querySelector('figure[data-number=\"0\"]')")
    middle = prompts(gallery)
    assert 10 < len(middle) < 100
    assert any(f"number {number}" in title for number in range(4900, 5100) for title in middle)
    page.evaluate("scroller.scrollTop = space.clientHeight")
    page.wait_for_selector(f"figure[data-number='{NUMBER - 1}']")
    assert page.evaluate("document.querySelectorAll('video').length") < 100
    gallery.wait_until(PLAYS)


def test_search_filters_and_order(gallery):
    page = gallery.page
    page.fill("#search", "RED star moves")
    assert page.inner_text("#count") == f"833 of {NUMBER} clips"
    assert all(title.startswith("a red star") for title in prompts(gallery))
    page.fill("#search", "7919")  # a seed
    assert prompts(gallery) == ["a green circle moves left, number 1", "a yellow star moves down, number 7919"]
    page.fill("#search", "")
    page.select_option("[data-setting=steps]", "8")
    page.select_option("#scale", "3")
    assert page.inner_text("#count") == f"5000 of {NUMBER} clips"
    page.select_option("#scale", "1")
    assert page.inner_text("#count") == f"0 of {NUMBER} clips"
    assert not page.is_visible("[data-setting=solver]")  # all are of one
    page.select_option("[data-setting=steps]", "")
    page.select_option("#order", "seed")
    assert page.inner_text("figure[data-number='0'] small").strip() == "seed 0, guidance 1"
    page.click("#direction")
    assert page.inner_text("figure[data-number='0'] small").strip().startswith("seed 10006")


def test_a_click_tells_what_the_clip_came_from_and_how_it_is_made_again(gallery, samples):
    page = gallery.page
    page.click("figure[data-number='5']")
    clip = read_samples(samples)[5]
    told = page.inner_text("#details")
    for text in (clip.request.prompt, clip.sha256, clip.model, "steps\t8", "network calls\t16", "guidance_scale\t3"):
        assert str(text) in told
    path = str(samples / clip.file).replace("'", "'\\''")
    assert page.inner_text("#details code") == f"reelflow remake '{path}'"
    page.click("#details button")
    assert not page.is_visible("#details")


def test_keys_move_open_and_close(gallery):
    page = gallery.page
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    columns = page.evaluate("columns")
    assert page.get_attribute("figure.selected", "data-number") == str(1 + columns)
    page.keyboard.press("Enter")
    assert f"number {1 + columns}\n" in page.inner_text("#details")
    page.keyboard.press("End")
    page.wait_for_selector(f"figure.selected[data-number='{NUMBER - 1}']")
    assert f"number {NUMBER - 1}\n" in page.inner_text("#details")
    page.keyboard.press("Home")
    page.wait_for_selector("figure.selected[data-number='0']")
    page.keyboard.press("Escape")
    assert not page.is_visible("#details")
    page.keyboard.press("/")
    page.keyboard.type("star")
    assert page.input_value("#search") == "star"
    page.keyboard.press("ArrowRight")  # moves in the field
    assert page.query_selector("figure.selected") is None
    page.focus("#order")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#order") == "prompt"


def test_clips_are_sorted_by_a_score_and_those_without_come_last(browser, tmp_path):
    folder = write_many_samples(tmp_path / "scored", 6)
    values = [0.5, 0.25, None, 1.0, 0.125, 2.0]
    clips = [
        clip.shown(right=value != 1.0, scores={} if value is None else {"motion": value, "area": 1.0})
        for clip, value in zip(read_samples(folder), values, strict=True)
    ]
    write_gallery(folder, clips)
    page = browser.open(folder / "index.html")
    page.select_option("#order", "score motion")
    assert [title[-1] for title in prompts(browser)] == list("410352")
    assert page.inner_text("figure[data-number='0'] b").strip() == "0.125"
    page.click("#direction")
    assert [title[-1] for title in prompts(browser)] == list("530142")
    page.click("figure[data-number='0']")
    assert "motion\t2" in page.inner_text("#details")
    page.select_option("#verdict", "false")
    assert [title[-1] for title in prompts(browser)] == ["3"]
    assert browser.problems == []


def test_two_folders_play_side_by_side(browser, tmp_path):
    one, other = write_many_samples(tmp_path / "a", 8), write_many_samples(tmp_path / "b", 8, steps=(4, 16))
    show_side_by_side(one, other, tmp_path / "both.html")
    page = browser.open(tmp_path / "both.html")
    browser.wait_until(PLAYS)
    assert page.inner_text("#count") == "8 pairs"
    assert page.evaluate("document.querySelectorAll('figure video').length") == 16
    page.select_option("[data-setting=steps]", "16")
    assert page.inner_text("#count") == "4 of 8 pairs"
    page.click("figure[data-number='0']")
    commands = [code.inner_text() for code in page.query_selector_all("#details code")]
    assert [Path(command.split()[-1]).parent for command in commands] == [one, other]
    assert browser.problems == []


def test_a_hostile_prompt_is_text(browser, tmp_path):
    folder = write_many_samples(tmp_path / "hostile", 1)
    text = "</script><img src=x onerror=alert(1)>"
    manifest = folder / "manifest.jsonl"
    line = json.loads(manifest.read_text())
    line["request"]["prompt"] = text
    line["request"]["metadata"] = {"<b>note</b>": text}
    manifest.write_text(json.dumps(line) + "\n")
    show_samples(folder, None)
    page = browser.open(folder / "index.html")
    page.click("figure")
    assert page.evaluate("document.images.length") == 0
    assert page.inner_text("#details p") == text
    assert browser.problems == []


def test_pages_of_comparisons_and_sweeps_play_what_they_hold(browser, tmp_path):
    frames = moving_shapes(5, 32)
    row = FigureRow("motion", "meaning", "1", "2", "-1", is_different=True)
    pair = NearestPair(frames, frames, "<b>like</b>")
    tiles = [Tile("1.5", "distance")]
    comparison = ComparisonPage("a/samples", "b/clips", tiles, ["note"], [row], [row], "few", [pair])
    content = encode_clip(frames, 8)
    combinations = [
        SweepRow(f"steps {cost}", cost, cost, 4, 0, ["0.5"], is_on_front=True, clips=[SweepClip(content, "a")])
        for cost in (4.0, 8.0)
    ]
    front = Front("share", "higher", [Point(4, 0.5, 0.4, 0.6), Point(8, 0.7, 0.6, 0.8)], [0, 1])
    sweep = SweepPage("a/sweep", ["note"], [front], ["share"], has_reference=True, rows=combinations)
    for path, number in (
        (write_comparison_page(comparison, tmp_path / "compared"), 2),
        (write_sweep_page(sweep, tmp_path / "sweep"), 2),
    ):
        page = browser.open(path)
        browser.wait_until(
            f"[...document.querySelectorAll('video')].filter((v) => v.readyState >= 2).length === {number}"
        )
        assert page.query_selector("figcaption b") is None or path.parent.name == "sweep"
        assert browser.problems == []
