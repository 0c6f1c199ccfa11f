"""Headless Chromium for tests of pages. Pictures go to $ALIGN_SCREENSHOTS, or to a folder of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000
_TAKEN: set[Path] = set()
ASSISTANT = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
"""Says that MLflow's assistant, which takes a third of the page, was seen before."""


class Browser:
    """A page of somebody's, and the pictures that were taken of it."""

    def __init__(self, page: Page, whose: str, pictures: Path) -> None:
        self.page, self.whose = page, whose
        self.pictures = Path(os.environ.get("ALIGN_SCREENSHOTS") or pictures)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def open(self, address: str) -> None:
        """Afresh: an address that differs in its fragment alone would only be scrolled to."""
        self.page.goto("about:blank")
        self.page.goto(address)

    def follow(self, link: str) -> None:
        """Where a link leads; MLflow's descriptions open theirs in a page of its own."""
        found = self.page.get_by_role("link", name=link, exact=True).first
        self.open(str(found.evaluate("link => link.href")))

    def shows(self, *texts: str) -> None:
        """Waits until all of these can be seen."""
        for text in texts:
            expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible(timeout=PATIENCE_MS)

    def shows_picture(self, name: str) -> None:
        """Waits until one of that name, or of none, is drawn: what the page shows first is an icon."""
        drawn = f"img[src*='{name}'], img[src^='blob:'], img[src^='data:image']"
        large = "css => [...document.querySelectorAll(css)].some(one => one.naturalWidth > 300)"
        self.page.wait_for_function(large, arg=drawn)

    def scroll_to(self, text: str, table: Locator) -> None:
        """Until a table shows it that holds no more rows than can be seen."""
        table.hover()
        for _ in range(100):
            if self.page.get_by_text(text, exact=True).filter(visible=True).count():
                for further in (200, 1):  # the names of MLflow's rows follow their values one turn of the wheel late
                    self.page.mouse.wheel(0, further)
                    self.page.wait_for_timeout(200)
                return
            self.page.mouse.wheel(0, 200)
            self.page.wait_for_timeout(200)
        raise AssertionError(f"{text} is not in the table")

    def picture(self, name: str, height: int | None = None) -> None:
        """Of what can be seen, or as if the window were so high: these pages scroll within themselves."""
        before = self.page.viewport_size
        if height is not None and before is not None:
            self.page.set_viewport_size({"width": before["width"], "height": height})
        self.page.wait_for_timeout(1000)  # for what moves in
        path = self.pictures / f"{self.whose}-{name}.png"
        assert path not in _TAKEN, f"{path.name} is the name of two pictures"
        _TAKEN.add(path)
        self.page.screenshot(path=path)
        if height is not None and before is not None:
            self.page.set_viewport_size(before)

    def field(self, title: str, element: str = "textarea") -> Locator:
        """The input of a form under this title."""
        label = f"//label[.//span[starts-with(normalize-space(), '{title}')]]"
        return self.page.locator(f"xpath={label}/following::{element}[1]")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)


@contextmanager
def browser(whose: str, pictures: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(f"localStorage.setItem('{ASSISTANT}', 'true')")
        yield Browser(page, whose, pictures)
        chromium.close()
