"""A headless Chromium that opens pages from files, and collects what goes wrong in them."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Of browsers that play H.264; the one that playwright downloads does not."""
KINDS = ("error", "warning")  # of messages in the console
ABORTED = "net::ERR_ABORTED"  # of a video whose tile left the view


@dataclass
class BrowserPage:
    """A page of a browser."""

    page: "Page"
    problems: list[str] = field(default_factory=list)
    """Errors of scripts, errors and warnings in the console, and files that were not found."""

    def open(self, path: Path) -> "Page":
        """Show a file, and wait until its scripts have run."""
        self.page.goto(path.resolve().as_uri(), wait_until="domcontentloaded")
        return self.page

    def wait_until(self, expression: str, seconds: float = 30.0) -> None:
        """Wait for a JavaScript expression to be true. Playwright's own waiting evaluates text, which pages forbid.

        Raises:
            TimeoutError: it is still false.
        """
        end = time.monotonic() + seconds
        while not self.page.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"still false after {seconds:g} s: {expression}")
            time.sleep(0.02)


def find_chromium() -> str:
    """The program to run.

    Raises:
        FileNotFoundError: none is installed.
    """
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise FileNotFoundError(f"none of {', '.join(PROGRAMS)} is installed; for example: apt-get install chromium")
    return found


@contextmanager
def browser_page() -> Iterator[BrowserPage]:
    """An empty page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as library:
        browser = library.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        shown = BrowserPage(browser.new_page(viewport={"width": 1280, "height": 800}))
        page, problems = shown.page, shown.problems
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        page.on("console", lambda said: problems.append(f"console: {said.text}") if said.type in KINDS else None)
        page.on(
            "requestfailed",
            lambda request: (
                problems.append(f"{request.url}: {request.failure}") if request.failure != ABORTED else None
            ),
        )
        try:
            yield shown
        finally:
            browser.close()
