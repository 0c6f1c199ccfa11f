"""A real browser, and pictures of what it shows, for whoever wants to look: `ALIGN_SCREENSHOTS=FOLDER pytest ...`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
PATIENCE_MS = 60_000
"""A page on a busy machine."""
ASSISTANT = "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1"
"""Says that MLflow's assistant, which takes a third of the page, was seen before."""
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="there is no Chromium here; CI installs one"
)


class Browser:
    """One page, which is photographed as it goes on."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page, self.pictures = page, pictures

    def open(self, address: str) -> Page:
        """A fresh page there: an address that differs in its fragment alone would only be scrolled to."""
        self.page.goto("about:blank")
        self.page.goto(address, timeout=PATIENCE_MS)
        return self.page

    def follow(self, link: str) -> None:
        """Where a link leads; MLflow's descriptions open theirs in a page of its own."""
        found = self.page.get_by_role("link", name=link, exact=True).first
        self.open(str(found.evaluate("link => link.href")))

    def shows(self, *texts: str) -> None:
        """Waits until all of these can be seen."""
        for text in texts:
            expect(self.page.get_by_text(text).filter(visible=True).first).to_be_visible(timeout=PATIENCE_MS)

    def picture(self, name: str) -> None:
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self.pictures / f"{name}.png")


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with no memory of earlier visits; pictures go to `folder` unless ALIGN_SCREENSHOTS names another."""
    pictures = Path(os.environ.get("ALIGN_SCREENSHOTS") or folder)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1680, "height": 1050})
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(f"localStorage.setItem('{ASSISTANT}', 'true')")
        yield Browser(page, pictures)
        chromium.close()
