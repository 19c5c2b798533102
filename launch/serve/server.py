"""A local page to make clips with a checkpoint: `reelflow serve`."""

import errno
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data.video.codec import check_encoder
from launch.config import ClusterConfig, check_writable
from launch.overrides import ConfigError, Override
from launch.sample_settings import SamplingConfig, read_settings
from launch.serve.queue import ClipQueue
from pipeline.report.gallery import GALLERY_NAME, write_gallery
from pipeline.run.context import StoppedError
from pipeline.run.precision import warn_of_slow_precision
from pipeline.run.signals import stopped_by_sigterm
from pipeline.sample.checks import check_can_sample
from pipeline.sample.model import open_model
from pipeline.sample.outputs import iterate_samples
from pipeline.sample.shards import held_folder

if TYPE_CHECKING:
    import uvicorn

GRACE_SECONDS = 3  # for answers that are being sent when the server ends
RECONNECT_SECONDS = 60.0  # in which a page that lost its connection goes on as it was


@dataclass(frozen=True)
class Listening:
    """Where the page is."""

    host: str = "127.0.0.1"
    port: int = 7860
    """0: any that is free."""
    token_file: Path | None = None


def serve_checkpoint(target: Path, output_dir: Path, overrides: Sequence[Override], at: Listening) -> Iterator[str]:
    """Serve the page until the process is stopped by Ctrl-C or SIGTERM; yields lines for the console.

    Raises:
        ConfigError: a setting is wrong or means nothing here, the extra is not installed, the token is missing, or
            the port is taken.
        ReelflowError: as `launch.sample.sample_checkpoint`, before anything listens.
        LockedError: another process samples into `output_dir`.
    """
    if find_spec("nicegui") is None:
        raise ConfigError("serve needs NiceGUI: pip install 'reelflow[serve]'")
    from launch.serve.guard import read_token

    token = read_token(at.host, at.token_file)
    model = open_model(target)
    config, notes = read_settings(model, overrides)
    refuse_unused(config)
    check_can_sample(model, config.sample.sampler())
    check_encoder(config.sample.files().video)
    check_writable(output_dir)
    yield from (f"warning: {note}" for note in notes)
    warn_of_slow_precision(config.sample.precision, float(torch.cuda.is_available()))
    with held_folder(output_dir):
        with ExitStack() as stack:
            listener = stack.enter_context(listen(at))
            stack.enter_context(stopped_by_sigterm("the server was stopped"))
            queue = stack.enter_context(ClipQueue(model, config, output_dir))
            server = _server(queue, token)
            yield f"serving {model} at {url_of(at.host, listener)}; clips go into {output_dir}; Ctrl-C ends it"
            try:
                server.run(sockets=[listener])
            except (KeyboardInterrupt, StoppedError):
                yield "stopping; a clip that is being made is left after its current step"
        number = write_gallery(output_dir, (clip.shown() for clip in iterate_samples(output_dir)))
    yield f"{number} clips in {output_dir}, shown in {output_dir / GALLERY_NAME}"


def refuse_unused(config: SamplingConfig) -> None:
    """Refuse settings that mean nothing here, or that a page cannot do.

    Raises:
        ConfigError: names the first one.
    """
    section, workers = config.sample, config.cluster.workers
    own = config.cluster.model_copy(
        update={"workers": workers.model_copy(update={"cpus_per_worker": ClusterConfig().workers.cpus_per_worker})}
    )
    for name, is_used, way in (
        ("sample.prompts", section.prompts is None, "prompts are written on the page"),
        ("sample.bad_rows", section.bad_rows == "refuse", "what cannot be sampled is said on the page"),
        ("sample.sequence_parallel", section.sequence_parallel == 1, "clips are made in one process: set it to 1"),
        ("sample.outputs", "webdataset" not in section.outputs, "webdataset is written by jobs alone"),
        ("cluster", own == ClusterConfig(), "no cluster is used; of it, cluster.workers.cpus_per_worker alone is read"),
    ):
        if not is_used:
            raise ConfigError(f"{name}: serve does not take it: {way}")


def listen(at: Listening) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the host is none of this machine, or the port is taken.
    """
    try:
        return socket.create_server((at.host.strip("[]"), at.port), family=_family(at.host))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {at.port} is in use; name another with --port, or 0 for any that is free"
        else:
            reason = f"--host {at.host} --port {at.port} cannot be listened on ({error.strerror or error})"
        raise ConfigError(reason) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def url_of(host: str, listener: socket.socket) -> str:
    """Where a browser finds the page."""
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listener.getsockname()[1]}"


def _server(queue: ClipQueue, token: str | None) -> "uvicorn.Server":
    import uvicorn
    from fastapi import FastAPI, HTTPException
    from nicegui import ui
    from starlette.responses import FileResponse

    from launch.serve.guard import Guard
    from launch.serve.page import add_page
    from launch.serve.page_form import INPUTS_DIR
    from launch.serve.page_results import CLIPS_URL

    app = FastAPI(openapi_url=None)

    def file_in(folder: Path, name: str) -> FileResponse:
        """A file that lies in a folder itself."""
        path = folder / name
        if path.parent != folder or name.startswith(".") or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4" if path.suffix == ".mp4" else "application/octet-stream")

    @app.get(f"{CLIPS_URL}/{{name}}")
    def _clip(name: str) -> FileResponse:
        if not name.endswith(".mp4"):
            raise HTTPException(404)
        return file_in(queue.folder.resolve(), name)

    @app.get(f"/{INPUTS_DIR}/{{name}}")
    def _input(name: str) -> FileResponse:
        return file_in(queue.folder.resolve() / INPUTS_DIR, name)

    # to find its server, NiceGUI asks all objects of this process what they are, some of which warn when asked
    warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
    add_page(queue)
    ui.run_with(app, dark=None, show_welcome_message=False, reconnect_timeout=RECONNECT_SECONDS)
    config = uvicorn.Config(
        Guard(app, token), log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
    )
    return uvicorn.Server(config)
