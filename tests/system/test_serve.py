"""`reelflow serve` in a browser: a prompt becomes a clip with the bytes of a job, and no other server is asked."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from launch.sample import sample_checkpoint
from pipeline.sample.outputs import read_samples
from testing.browser import BrowserPage, browser_page
from testing.clips import moving_shapes
from testing.paths import ROOT

pytestmark = pytest.mark.browser
CARDS = "document.querySelectorAll('[data-id]').length"
SETTINGS = ["sample.precision=fp32", "sample.solver=euler", "sample.steps=4"]
SECONDS = 120
WATCH = "() => [...document.body.innerText.matchAll(/step (\\d+) of 2000/g)].forEach((m) => window.steps.add(m[1]))"


@dataclass
class Served:
    """A server, and a browser that shows its page."""

    url: str
    folder: Path
    process: "subprocess.Popen[str]"
    shown: BrowserPage
    requests: list[str]

    def fill(self, **values: str) -> None:
        """Write into controls, by label with `_` for spaces."""
        for label, value in values.items():
            self.shown.page.get_by_label(label.replace("_", " "), exact=True).fill(value)

    def generate(self) -> None:
        """Press the button."""
        self.shown.page.get_by_role("button", name="Generate").click()

    def text(self) -> str:
        """All that the page says."""
        return self.shown.page.inner_text("body")


@pytest.fixture(scope="module")
def served(model_dir, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("it's") / "the clips"
    command = [sys.executable, "-m", "launch", "serve", str(model_dir), "--output", str(folder), "--port", "0"]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NICEGUI_"))}
    process = subprocess.Popen(
        [*command, *settings], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"at (http://127\.0\.0\.1:\d+); clips go into", said)
    assert found is not None, said + process.stdout.read()
    with browser_page() as shown:
        requests: list[str] = []
        shown.page.on("request", lambda request: requests.append(request.url))
        shown.page.on("websocket", lambda socket: requests.append(socket.url))
        shown.page.goto(found[1], wait_until="domcontentloaded")
        shown.page.get_by_label("Prompt", exact=True).wait_for()
        yield Served(found[1], folder, process, shown, requests)
        assert shown.problems == []
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, rest
        assert rest.splitlines()[-1].endswith(f"shown in {folder / 'index.html'}")
        assert "Traceback" not in rest


def test_a_prompt_becomes_a_clip_that_plays_and_has_the_bytes_of_a_job(served, model_dir, cluster, tmp_path):
    shown, page = served.shown, served.shown.page
    assert "No clip yet" in served.text()
    assert page.get_by_label("Steps", exact=True).input_value() == "4"
    page.evaluate(f"() => {{ window.steps = new Set(); setInterval({WATCH}, 20) }}")
    served.fill(Prompt="a red dot", Steps="2000", Guidance_scale="2.5")
    served.generate()
    shown.wait_until(f"{CARDS} === 1", SECONDS)
    assert page.evaluate("window.steps.size") > 2
    shown.wait_until(
        "(() => { const v = document.querySelector('video'); return v.readyState >= 2 && v.duration > 0 })()"
    )
    shown.wait_until("document.querySelector('video').currentTime > 0")
    (clip,) = read_samples(served.folder)
    assert clip.request.settings is not None
    assert (clip.request.prompt, clip.request.settings.steps, clip.request.guidance_scale) == ("a red dot", 2000, 2.5)
    assert "No clip yet" not in served.text()
    assert f"seed {clip.request.seed}" in served.text()
    command = f"reelflow remake '{served.folder / clip.file}'".replace("it's", "it'\"'\"'s")
    assert page.inner_text(".command") == command

    row = {"prompt": "a red dot", "seed": clip.request.seed, "steps": 2000, "guidance_scale": 2.5}
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(row) + "\n")
    list(sample_checkpoint(model_dir, tmp_path / "job", [*SETTINGS, f"sample.prompts={prompts}"], dry_run=False))
    (made,) = read_samples(tmp_path / "job")
    assert made.file == clip.file
    assert (tmp_path / "job" / made.file).read_bytes() == (served.folder / clip.file).read_bytes()
    played = page.request.get(f"{served.url}/clips/{clip.file}")
    assert played.body() == (served.folder / clip.file).read_bytes()


def test_what_is_wrong_is_said_at_its_control_and_nothing_is_made(served):
    page = served.shown.page
    before = read_samples(served.folder)
    for label, name, value, reason in (
        ("Steps", "steps", "many", "Input should be a valid integer"),
        ("Guidance scale", "guidance_scale", "", "Input should be a valid number"),
        ("Shape", "bucket", "5x33x32@8", "bucket '5x33x32@8'"),
        ("Clips", "num_seeds", "0", "Input should be greater than or equal to 1"),
    ):
        control = page.get_by_label(label, exact=True)
        kept = control.input_value()
        served.fill(Prompt="a", **{label.replace(" ", "_"): value})
        served.generate()
        served.shown.wait_until(
            f"[...document.querySelectorAll('[role=alert]')].some((e) => e.innerText.includes({json.dumps(reason)}))"
        )
        alert = page.inner_text("[role=alert]:visible")
        assert alert.startswith(name)
        assert control.evaluate("(e) => e.closest('.q-field').classList.contains('q-field--error')")
        control.fill(kept)
    served.fill(Prompt=" ")
    served.generate()
    served.shown.wait_until("document.body.innerText.includes('prompt: write what the clip shall show')")
    assert read_samples(served.folder) == before


def test_clips_wait_their_turn_and_an_image_starts_them(served, tmp_path):
    shown, page = served.shown, served.shown.page
    number = page.evaluate(CARDS)
    Image.fromarray(moving_shapes(1, 48)[0]).save(tmp_path / "start.png")
    page.set_input_files("input[type=file]", tmp_path / "start.png")
    shown.wait_until("document.body.innerText.includes('The clip starts with this image.')")
    shown.wait_until("document.querySelector('.q-img img')?.naturalWidth === 48")
    served.fill(Prompt="from an image", Steps="100000", Clips="3")
    served.generate()
    shown.wait_until("document.body.innerText.includes('waiting, 2 before it')")
    for left in (2, 1):  # those that wait, the last one first, each once the page no longer shows the one before
        page.get_by_role("button", name="Take it out").last.click()
        shown.wait_until(f"document.querySelectorAll('[data-job]').length === {left}")
    served.fill(Prompt="after it", Steps="2", Clips="1")
    served.generate()
    shown.wait_until("document.body.innerText.includes('waiting, 1 before it')")
    page.get_by_role("button", name="Take it out").first.click()
    shown.wait_until(f"{CARDS} === {number + 1} && !document.querySelector('[data-job]')", SECONDS)
    clip = read_samples(served.folder)[-1]
    assert clip.request.prompt == "after it"
    assert clip.request.image is not None
    assert Path(clip.request.image.path).read_bytes() == (tmp_path / "start.png").read_bytes()
    assert Path(clip.request.image.path).parent == served.folder / "inputs"
    first = page.locator("[data-id]").first
    assert first.get_attribute("data-id") == clip.request.id
    page.get_by_label("Steps", exact=True).fill("9")
    first.get_by_role("button", name="Take its prompt").click()
    shown.wait_until("document.querySelector('textarea').value === 'after it'")
    assert page.get_by_label("Steps", exact=True).input_value() == "2"
    assert "The clip starts with this image." in served.text()
    assert page.get_by_label("Seed", exact=True).input_value() == str(clip.request.seed)


def test_another_window_shows_the_same_clips_and_hostile_prompts_are_text(served):
    shown, page = served.shown, served.shown.page
    number = page.evaluate(CARDS)
    text = "</script><img src=x onerror=alert(1)> {{ 1 }} `x`"
    served.fill(Prompt=text)
    served.generate()
    shown.wait_until(f"{CARDS} === {number + 1}", SECONDS)
    page.reload(wait_until="domcontentloaded")
    shown.wait_until(f"{CARDS} === {number + 1}")
    assert text in page.locator("[data-id]").first.inner_text()
    assert page.evaluate("[...document.images].every((image) => !image.src.endsWith('/x'))")


def test_only_the_server_is_asked_and_it_answers_its_own_page_alone(served):
    hosts = {urlsplit(url).netloc for url in served.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(served.url).netloc}
    assert len(served.requests) > 10
    ask = served.shown.page.request.get
    assert ask(served.url, headers={"origin": "http://example.org"}).status == 403
    for path in ("manifest.jsonl", "..%2fmanifest.jsonl", ".sample.lock", "inputs", "%2fetc%2fpasswd"):
        assert ask(f"{served.url}/clips/{path}").status == 404
    for path in ("docs", "openapi.json", "inputs/..%2fmanifest.jsonl"):
        assert ask(f"{served.url}/{path}").status == 404
