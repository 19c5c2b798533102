"""The left side of the page: what clips are asked for with."""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import randbelow
from typing import Any

from nicegui import events, run, ui

from data.errors import ReelflowError, shorten
from data.files.publish import publish_bytes
from launch.serve.form import Control, form_of, row_of_form
from launch.serve.queue import PLACE, ClipQueue
from pipeline.sample.prompts import PromptError
from pipeline.sample.requests import PromptRequest

MAX_IMAGE_BYTES = 2**25
INPUTS_DIR = "inputs"
"""Beside the clips, for the images that they start from."""
_BEGINNING = re.compile(r"(?:sample\.)?([a-z_]+)")  # of a message: the column that it is about


@dataclass
class Form:
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
        path = await run.io_bound(self._kept, await event.file.read())
        if path is None:  # the server ends
            return
        self._show_image(path)
        self.upload.reset()

    def _kept(self, content: bytes) -> Path:
        """The file that holds an image, by what it holds."""
        path = (self.queue.folder / INPUTS_DIR / sha256(content).hexdigest()[:16]).resolve()
        if not path.is_file():
            publish_bytes(path, content)
        return path

    def _show_image(self, path: Path) -> None:
        self.image = path
        self.picture.set_source(f"/{INPUTS_DIR}/{path.name}")
        self.preview.visible, self.pick.visible = True, False

    def _drop_image(self) -> None:
        self.image = None
        self.preview.visible, self.pick.visible = False, True

    def show(self, message: str | None) -> None:
        """Show what is wrong, at its control too; None: nothing is."""
        self.problem.text = message or ""
        self.problem.visible = message is not None
        found = _BEGINNING.match(message or "")
        for each, element in self.inputs.items():
            if found is not None and each == found[1]:
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
            self.show(error.reason.removeprefix(f"{PLACE}: "))
        except (ReelflowError, OSError) as error:
            self.show(str(error))
        else:
            self.show(None)

    def fill(self, request: PromptRequest) -> None:
        """Ask for what a clip was made with, of which `is_of_form` holds."""
        for name, value in form_of(request, self.controls).items():
            self.inputs[name].value = value
        self.new_seed.value = False
        self.show(None)
        if request.image is None:
            if self.image is not None:
                self._drop_image()
            return
        try:
            self._show_image(self._kept(Path(request.image.path).read_bytes()))
        except OSError as error:
            self._drop_image()
            self.show(f"image: {request.image.path} cannot be read any more ({error.strerror}); choose it again")

    def reset(self) -> None:
        """Take the settings that the page began with; the prompt stays."""
        for control in self.controls:
            self.inputs[control.name].value = control.default
        self.show(None)
