"""The page: a form on the left, and on the right what waits, what is being made, and the clips."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import randbelow
from typing import Any
from urllib.parse import quote

from nicegui import events, run, ui

from data.errors import ReelflowError, shorten
from data.files.publish import publish_bytes
from launch.serve.form import Control, changed_in, controls_of, form_of, row_of_form
from launch.serve.queue import ClipQueue, Job
from pipeline.sample.outputs import SampledClip
from pipeline.sample.prompts import PromptError

REFRESH_SECONDS = 0.2
MAX_IMAGE_BYTES = 2**25
INPUTS_DIR = "inputs"
CLIPS_URL = "/clips"
STYLE = """
body { background: #f4f5f7; } body.body--dark { background: #14161a; }
.clip video { width: 100%; background: #000; border-radius: 6px; image-rendering: pixelated; }
.clip video:not(:hover)::-webkit-media-controls { display: none; }
.command { font-family: monospace; font-size: 12px; overflow-x: auto; white-space: nowrap; padding: 4px 8px;
  border-radius: 4px; background: #8882; }
.nicegui-content { padding: 0; }
"""


def remake_command(queue: ClipQueue, clip: SampledClip) -> str:
    """The command that makes a clip again, byte by byte."""
    words = ["reelflow", "remake", str((queue.folder / clip.file).resolve())]
    if queue.num_threads != 1:
        words += ["--threads", str(queue.num_threads)]
    if queue.sampler.text_encoder is not None:
        words += ["--text-encoder", str(queue.sampler.text_encoder)]
    return shlex.join(words)


def standing(job: Job, num_ahead: int) -> str:
    """Where a clip stands, in words."""
    if job.state == "waiting":
        return f"waiting, {num_ahead} before it"
    if (progress := job.progress) is None:
        return "preparing"
    window = f"window {progress.window + 1} of {progress.num_windows}, " if progress.num_windows > 1 else ""
    return f"{window}step {progress.step} of {progress.num_steps}"


def add_page(queue: ClipQueue) -> None:
    """Add the page at `/` to NiceGUI's app."""
    controls = controls_of(queue.model, queue.sampler)

    @ui.page("/", title=f"reelflow: {queue.model.title}")
    def _page() -> None:
        ui.add_css(STYLE)
        ui.colors(primary="#3d5a80", accent="#ee6c4d")
        with ui.header().classes("items-center gap-4 px-6 py-2"):
            ui.label("reelflow").classes("text-lg font-bold")
            ui.label(queue.model.title).classes("opacity-80")
            ui.space()
            ui.label(f"clips in {queue.folder}").classes("opacity-70 text-sm ellipsis")
        with ui.row().classes("w-full max-w-screen-2xl mx-auto p-4 gap-4 items-start no-wrap max-md:flex-wrap"):
            form = _Form(queue, controls)
            with ui.column().classes("w-full md:w-96 shrink-0"):
                form.build()
            with ui.column().classes("grow min-w-0 gap-3"):
                _Results(queue, controls, form).build()


@dataclass
class _Form:
    """The controls of one browser window."""

    queue: ClipQueue
    controls: list[Control]
    inputs: dict[str, Any] = field(default_factory=dict)
    """NiceGUI's elements, by column."""
    image: Path | None = None

    def build(self) -> None:
        """Add the elements."""
        with ui.card().classes("w-full gap-3"):
            prompt = ui.textarea("Prompt", placeholder="a red circle moves left").props("autogrow outlined autofocus")
            self.inputs["prompt"] = prompt.classes("w-full").on("keydown.ctrl.enter", self.submit)
            by_name = {control.name: control for control in self.controls}
            self._control(by_name["negative_prompt"], "w-full")
            self._build_image()
            with ui.grid(columns=2).classes("w-full gap-3"):
                for name in ("steps", "guidance_scale", "solver", "bucket", "seed", "num_seeds"):
                    self._control(by_name[name])
            self.new_seed = ui.switch("Another seed for each clip", value=True)
            more = ui.expansion("More settings", icon="tune").classes("w-full").props("dense")
            with more, ui.grid(columns=2).classes("w-full gap-3 pt-2"):
                for control in self.controls:
                    if control.name not in self.inputs:
                        self._control(control)
            self.problem = ui.label().classes("w-full text-negative break-words").props("role=alert")
            self.problem.visible = False
            self.button = ui.button("Generate", icon="movie", on_click=self.submit).classes("w-full")
            ui.button("The settings of the checkpoint", on_click=self.reset).classes("w-full").props(
                "flat dense no-caps"
            )

    def _control(self, control: Control, classes: str = "") -> None:
        element: Any
        if control.name == "bucket":  # shapes that were not trained may be asked for too
            element = ui.input(control.label, value=control.default, autocomplete=list(control.choices))
        elif control.choices:
            options = {choice: choice or "none" for choice in control.choices}
            element = ui.select(options, label=control.label, value=control.default)
        else:
            element = ui.input(control.label, value=control.default)
        self.inputs[control.name] = element.props("outlined dense").classes(classes)
        with element:
            ui.tooltip(shorten(control.help, 300)).props("delay=600").classes("max-w-sm")

    def _build_image(self) -> None:
        model = self.queue.model
        if (refusal := model.image_refusal) is not None and not model.network.needs_image:
            ui.label(f"No image to start from: {refusal.replace(str(model.folder), 'this checkpoint')}.").classes(
                "text-xs opacity-60"
            )
            return
        self.upload = ui.upload(
            auto_upload=True,
            max_file_size=MAX_IMAGE_BYTES,
            on_upload=self._take_image,
            on_rejected=lambda: self.show(f"image: a file of at most {MAX_IMAGE_BYTES // 2**20} MiB is taken"),
        )
        self.upload.props("accept=image/*").classes("hidden")
        needed = "An image to start from" if model.network.needs_image else "An image to start from, if you like"
        self.pick = ui.button(needed, icon="image").classes("w-full").props("outline no-caps")
        self.pick.on("click", js_handler=f"() => getElement({self.upload.id}).pickFiles()")
        with ui.row().classes("w-full items-center no-wrap") as self.preview:
            self.picture = ui.image().classes("w-16 rounded")
            ui.label("The clip starts with this image.").classes("text-xs opacity-70 grow")
            ui.button(icon="close", on_click=self._drop_image).props("flat round dense")
        self.preview.visible = False

    async def _take_image(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        name = sha256(content).hexdigest()[:16]
        path = (self.queue.folder / INPUTS_DIR / name).resolve()
        if not path.is_file():
            await run.io_bound(publish_bytes, path, content)
        self.image = path
        self.picture.set_source(f"/{INPUTS_DIR}/{name}")
        self.preview.visible, self.pick.visible = True, False
        self.upload.reset()

    def _drop_image(self) -> None:
        self.image = None
        self.preview.visible, self.pick.visible = False, True

    def show(self, message: str | None) -> None:
        """Show what is wrong, at its control too; None: nothing is."""
        self.problem.text = message or ""
        self.problem.visible = message is not None
        name = (message or "").partition(":")[0].removeprefix("settings.")
        for each, element in self.inputs.items():
            if each == name:
                element.props("error hide-bottom-space")
            else:
                element.props(remove="error hide-bottom-space")

    async def submit(self) -> None:
        """Queue what the form asks for, or show why that cannot be."""
        if self.new_seed.value:
            self.inputs["seed"].value = str(randbelow(2**31))
        values = {name: str(element.value or "") for name, element in self.inputs.items()}
        if not values["prompt"].strip():
            self.show("prompt: write what the clip shall show")
            return
        row = row_of_form(values, self.controls, None if self.image is None else str(self.image))
        try:
            await run.io_bound(self.queue.submit, row)
        except PromptError as error:
            self.show(error.reason)
        except (ReelflowError, OSError) as error:
            self.show(str(error))
        else:
            self.show(None)

    def fill(self, values: dict[str, str]) -> None:
        """Ask for what a clip was made with."""
        for name, value in values.items():
            self.inputs[name].value = value
        self.new_seed.value = False
        self.show(None)

    def reset(self) -> None:
        """Take the settings that the page began with; the prompt stays."""
        for control in self.controls:
            self.inputs[control.name].value = control.default
        self.show(None)


@dataclass
class _Results:
    """What one browser window shows of the queue, which all of them share."""

    queue: ClipQueue
    controls: list[Control]
    form: _Form
    jobs: dict[Job, "_JobRow"] = field(default_factory=dict)
    cards: dict[str, Any] = field(default_factory=dict)
    """By the id of the clip."""
    shown: list[SampledClip] = field(default_factory=list)

    def build(self) -> None:
        """Add the elements."""
        self.waiting = ui.column().classes("w-full gap-2")
        self.nothing = ui.column().classes("w-full items-center py-24 opacity-60")
        with self.nothing:
            ui.icon("movie_filter", size="4rem")
            ui.label("No clip yet. Write a prompt, and press Generate.")
        self.grid = (
            ui.element("div")
            .classes("w-full grid gap-4")
            .style("grid-template-columns: repeat(auto-fill, minmax(240px, 1fr))")
        )
        if self.queue.num_earlier > len(self.queue.history):
            ui.label(
                f"{len(self.queue.history)} of {self.queue.num_earlier} earlier clips are shown; `reelflow gallery "
                f"{self.queue.folder}` shows all."
            ).classes("text-xs opacity-60")
        self.update()
        ui.timer(REFRESH_SECONDS, self.update)

    def update(self) -> None:
        """Bring what is shown up to date; elements that stay are not made anew, so that clips go on playing."""
        jobs, history = list(self.queue.jobs), self.queue.history
        for job in [job for job in self.jobs if job not in jobs]:
            self.jobs.pop(job).delete()
        for job in jobs:
            if job not in self.jobs:
                with self.waiting:
                    self.jobs[job] = _JobRow(job, lambda job=job: self.queue.stop(job))
            self.jobs[job].update(self.queue.ahead_of(job))
        if history is not self.shown:
            known = {clip.request.id: clip for clip in self.shown}
            for clip in history:
                if known.get(clip.request.id) is not clip:
                    self._add(clip)
            self.shown = history
        self.nothing.visible, self.waiting.visible = not (self.cards or self.jobs), bool(self.jobs)

    def _add(self, clip: SampledClip) -> None:
        """Show a clip before all others."""
        if (old := self.cards.pop(clip.request.id, None)) is not None:
            old.delete()
        request, command = clip.request, remake_command(self.queue, clip)
        source = f"{CLIPS_URL}/{quote(clip.file)}"
        with self.grid, ui.card().classes("clip gap-2 p-3").props(f"data-id={request.id}") as card:
            ui.video(source, autoplay=True, muted=True, loop=True).props("playsinline")
            ui.label(request.prompt).classes("font-medium leading-tight break-words")
            changed = changed_in(request, self.controls)
            if clip.model == self.queue.model.fingerprint:
                told = [f"seed {request.seed}", request.bucket, *(f"{name} {value}" for name, value in changed.items())]
            else:
                told = [f"seed {request.seed}", request.bucket, "another checkpoint"]
            ui.label(" · ".join(shorten(text, 60) for text in told)).classes("text-xs opacity-70 break-words")
            ui.label(command).classes("command w-full")
            with ui.row().classes("w-full gap-1 no-wrap"):
                self._button("content_copy", "Copy the command that makes this clip again", lambda: _copy(command))
                self._button("download", "Download", lambda: ui.download(source, clip.file))
                if request.settings is not None:
                    values = form_of(request, self.controls)
                    self._button("edit", "Take its prompt, seed and settings", lambda: self.form.fill(values))
        card.move(self.grid, 0)
        self.cards[request.id] = card

    def _button(self, icon: str, told: str, do: Callable[[], object]) -> None:
        with ui.button(icon=icon, on_click=lambda _: do()).props(f'flat round dense size=sm aria-label="{told}"'):
            ui.tooltip(told)


class _JobRow:
    """A clip that waits, is made, or could not be made."""

    def __init__(self, job: Job, stop: Callable[[], None]) -> None:
        self.job, self.begun = job, 0.0
        with ui.card().classes("w-full gap-1 px-4 py-2").props(f"data-job={job.request.id}") as self.card:
            with ui.row().classes("w-full items-center no-wrap"):
                ui.label(job.request.prompt).classes("font-medium ellipsis grow")
                self.state = ui.label().classes("text-sm opacity-70 whitespace-nowrap")
                ui.button(icon="close", on_click=lambda _: stop()).props(
                    'flat round dense size=sm aria-label="Take it out"'
                )
            self.bar = ui.linear_progress(0, show_value=False).props("rounded instant-feedback")
            for warning in job.warnings:
                ui.label(warning).classes("text-xs text-warning break-words")
            self.error = ui.label().classes("text-negative break-words").props("role=alert")

    def update(self, num_ahead: int) -> None:
        """Show how far it is."""
        job, progress = self.job, self.job.progress
        self.error.text, self.error.visible = job.error or "", job.state == "failed"
        self.bar.visible = job.state == "running"
        if job.state == "failed":
            self.state.text = "failed"
            return
        self.state.text = standing(job, num_ahead) + self._left()
        self.bar.props(remove="indeterminate") if progress is not None else self.bar.props("indeterminate")
        self.bar.value = 0 if progress is None else progress.share

    def _left(self) -> str:
        """The seconds that are left at the speed since the first step that was seen."""
        progress = self.job.progress
        if progress is None:
            return ""
        if not self.begun:
            self.begun, self.first = time.monotonic(), progress.share
        done, seconds = progress.share - self.first, time.monotonic() - self.begun
        return f", {seconds * (1 - progress.share) / done:.0f} s left" if done > 0 and progress.share < 1 else ""

    def delete(self) -> None:
        """Show it no longer."""
        self.card.delete()


def _copy(command: str) -> None:
    ui.clipboard.write(command)
    ui.notify("copied")
