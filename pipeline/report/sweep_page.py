"""The page of a sweep: quality against cost, a table of all combinations, and clips of the same prompts and seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from data.files.publish import publish_text
from pipeline.report.contact_sheet import INK
from pipeline.report.pages import LINE_COLOUR, TEMPLATES, svg_of, video_uri

PAGE_NAME = "index.html"
MAX_EMBEDDED_BYTES = 24 * 2**20  # of clips in the page; the gallery has all of them


@dataclass(frozen=True)
class Point:
    """A combination in a plot, where its number in the table stands."""

    evaluations: float
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Front:
    """A measure of every combination, and which of them no other one beats."""

    title: str
    better: Literal["higher", "lower"]
    points: list[Point]
    best: list[int]
    """Numbers of points, the cheapest first."""


@dataclass(frozen=True)
class SweepClip:
    """A clip beside a combination."""

    content: bytes
    prompt: str


@dataclass(frozen=True)
class SweepRow:
    """A combination in the table."""

    name: str
    calls: float
    evaluations: float
    num_clips: int
    num_missing: int
    cells: list[str]
    is_on_front: bool
    """Whether it is one of the best by any measure."""
    clips: list[SweepClip]


@dataclass(frozen=True)
class SweepPage:
    """What the page shows."""

    name: str
    notes: list[str]
    fronts: list[Front]
    columns: list[str]
    has_reference: bool
    rows: list[SweepRow]


def write_sweep_page(page: SweepPage, folder: Path) -> Path:
    """Write index.html, which holds its plots and videos."""
    size, videos = 0, list[list[dict[str, str]]]()
    for row in page.rows:
        shown = []
        for clip in row.clips:
            size += len(clip.content)
            if size <= MAX_EMBEDDED_BYTES:
                shown.append({"video": video_uri(clip.content), "prompt": clip.prompt})
        videos.append(shown)
    plots = [(front.title, front_plot(front)) for front in page.fronts]
    text = TEMPLATES.get_template("sweep.html").render(
        page=page, plots=plots, videos=videos, is_cut=size > MAX_EMBEDDED_BYTES
    )
    path = folder / PAGE_NAME
    publish_text(path, text)
    return path


def front_plot(front: Front) -> str:
    """A measure with its intervals over the network's evaluations of a clip; SVG text."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    others = [point for number, point in enumerate(front.points) if number not in front.best]
    best = [front.points[number] for number in front.best]
    for points, colour in ((others, "#a0aec0"), (best, LINE_COLOUR)):
        axes.errorbar(
            [point.evaluations for point in points],
            [point.value for point in points],
            # an interval need not contain the value of a share, by rounding
            yerr=[
                [max(0.0, point.value - point.low) for point in points],
                [max(0.0, point.high - point.value) for point in points],
            ],
            fmt="o",
            color=colour,
            elinewidth=0.8,
            markersize=4,
        )
    steps = [(point.evaluations, point.value) for point in best]
    axes.step([cost for cost, _ in steps], [value for _, value in steps], where="post", color=LINE_COLOUR, linewidth=1)
    for number, point in enumerate(front.points, 1):
        colour = INK if number - 1 in front.best else "#a0aec0"
        place = (point.evaluations, point.value)
        axes.annotate(f"{number}", place, (4, 4), textcoords="offset points", color=colour, fontsize=7)
    axes.set(
        xscale="log",
        xlabel="evaluations of the network for a clip",
        ylabel=f"{front.title}\n({front.better} is better)",
    )
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1, y=0.1)
    axes.grid(alpha=0.25)
    return svg_of(figure)
