"""The built book and a browser that may not leave the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tools import book, cache

TYPESET = "window.MathJax?.startup?.promise"  # kept when every formula of the page is drawn


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the rendered book; building it again is quick when nothing has changed."""
    assert book.build() == 0, "the book does not build"
    return cache.ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system; without one the tests are skipped, except where CI is set."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        message = "no Chromium found (apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """One page open in the browser, and what went wrong while it loaded."""

    def __init__(self, browser, address: str, width: int, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.troubles.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(f"script error: {error}"))
        self.page.on("requestfailed", lambda request: self.troubles.append(f"failed request: {request.url[:200]}"))
        self.page.on("request", self._request)
        self.page.goto(address)
        self.page.wait_for_function(f"!document.querySelector('script[src*=mathjax]') || {TYPESET}")
        self.page.evaluate(f"{TYPESET}?.then(() => true)")

    def _request(self, request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(f"request that leaves the machine: {request.url[:200]}")


@pytest.fixture
def visit(browser, site):
    """Opens a page of the book, given by its name below the site; `address=` opens any other."""
    visits = []

    def open_(name: str, width: int = 1280, **options) -> Visit:
        visits.append(Visit(browser, (site / f"{name}.html").as_uri() + options.pop("query", ""), width, **options))
        return visits[-1]

    yield open_
    for each in visits:
        each.context.close()
