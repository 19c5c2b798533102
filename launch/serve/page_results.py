"""The right side of the page: what waits, what is being made, and the clips."""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from nicegui import ui

from data.errors import shorten
from launch.serve.form import Control, changed_in, is_of_form
from launch.serve.page_form import Form
from launch.serve.queue import ClipQueue, Job
from pipeline.sample.outputs import SampledClip

REFRESH_SECONDS = 0.2
CLIPS_URL = "/clips"


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


@dataclass
class Results:
    """What one browser window shows of the queue, which all of them share."""

    queue: ClipQueue
    controls: list[Control]
    form: Form
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
                copied = f"() => {_COPY}({json.dumps(command)})"
                _button("content_copy", "Copy the command that makes this clip again").on("click", js_handler=copied)
                _button("download", "Download").props(f'href="{source}" download="{clip.file}"')
                if clip.model == self.queue.model.fingerprint and is_of_form(request):
                    _button("edit", "Take its prompt, seed and settings").on("click", lambda: self.form.fill(request))
        card.move(self.grid, 0)
        self.cards[request.id] = card


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


def _button(icon: str, told: str) -> ui.button:
    button = ui.button(icon=icon).props(f'flat round dense size=sm aria-label="{told}"')
    with button:
        ui.tooltip(told)
    return button


_COPY = """((text) => navigator.clipboard
  ? navigator.clipboard.writeText(text).then(() => Quasar.Notify.create("copied"))
  : Quasar.Notify.create("the browser copies on encrypted pages only: select the command"))"""
