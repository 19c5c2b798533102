"""How soon the gallery of many clips opens in a headless browser, and how it scrolls.

python -m benchmarks.gallery

Each size is opened several times, in a new page. Writes benchmarks/results/gallery.json: seconds until the first clip
plays, seconds from a jump within the page until clips play there, and how many players there are at once.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from launch.gallery import show_samples
from testing.browser import browser_page
from testing.galleries import write_many_samples

RESULT = Path(__file__).parent / "results" / "gallery.json"
SIZES, ROUNDS, JUMPS = (1000, 10_000, 50_000), 3, 10
PLAYS = "[...document.querySelectorAll('#space video')].some((video) => video.readyState >= 2)"
IN_VIEW_PLAYS = """[...document.querySelectorAll('#space video')].some((video) => {
  const { top, bottom } = video.getBoundingClientRect();
  return bottom > 100 && top < innerHeight && video.readyState >= 2;
})"""


def measure(folder: Path, number: int) -> dict[str, float | int]:
    """The times of one size."""
    write_many_samples(folder, number)
    show_samples(folder, None)
    opened, jumped, players = [], [], 0
    for _ in range(ROUNDS):
        with browser_page() as shown:
            started = time.monotonic()
            page = shown.open(folder / "index.html")
            shown.wait_until(PLAYS)
            opened.append(time.monotonic() - started)
            for jump in range(1, JUMPS + 1):
                started = time.monotonic()
                page.evaluate(f"scroller.scrollTop = space.clientHeight * {jump} / {JUMPS}")
                shown.wait_until(f"(scroller.scrollTop > 0) && {IN_VIEW_PLAYS}")
                jumped.append(time.monotonic() - started)
                players = max(players, page.evaluate("document.querySelectorAll('video').length"))
            assert shown.problems == [], shown.problems
    return {
        "clips": number,
        "page_mb": round((folder / "index.html").stat().st_size / 1e6, 2),
        "seconds_to_first_clip": round(statistics.median(opened), 2),
        "slowest": round(max(opened), 2),
        "seconds_of_a_jump": round(statistics.median(jumped), 2),
        "most_players": players,
    }


def main() -> None:
    """Measure, print and write."""
    rows = []
    for number in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder) / "samples", number))
            print(rows[-1])
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
