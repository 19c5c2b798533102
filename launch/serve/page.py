"""The page: a form on the left, and on the right what waits, what is being made, and the clips."""

from nicegui import ui

from launch.serve.form import controls_of
from launch.serve.page_form import Form
from launch.serve.page_results import Results
from launch.serve.queue import ClipQueue

STYLE = """
body { background: #f4f5f7; } body.body--dark { background: #14161a; }
.clip video { width: 100%; background: #000; border-radius: 6px; image-rendering: pixelated; }
.clip video:not(:hover)::-webkit-media-controls { display: none; }
.command { font-family: monospace; font-size: 12px; overflow-x: auto; white-space: nowrap; padding: 4px 8px;
  border-radius: 4px; background: #8882; }
.nicegui-content { padding: 0; }
"""


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
            form = Form(queue, controls)
            with ui.column().classes("w-full md:w-96 shrink-0"):
                form.build()
            with ui.column().classes("grow min-w-0 gap-3"):
                Results(queue, controls, form).build()
