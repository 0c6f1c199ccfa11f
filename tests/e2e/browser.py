"""Headless Chromium for tests of pages. Pictures go to $ALIGN_SCREENSHOTS, or to a folder of the test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000


class Browser:
    """A page, and the pictures that were taken of it."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page = page
        self.pictures = Path(os.environ.get("ALIGN_SCREENSHOTS") or pictures)
        self.pictures.mkdir(parents=True, exist_ok=True)

    def picture(self, name: str) -> None:
        self.page.wait_for_timeout(1000)  # for what moves in
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def field(self, title: str, element: str = "textarea") -> Locator:
        """The input of a form under this title."""
        label = f"//label[.//span[starts-with(normalize-space(), '{title}')]]"
        return self.page.locator(f"xpath={label}/following::{element}[1]")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)


@contextmanager
def browser(pictures: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        yield Browser(page, pictures)
        chromium.close()
