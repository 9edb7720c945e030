"""The built book and a browser that may not leave the machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from visits import Visit, address

from tools import book, cache


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


@pytest.fixture
def visit(browser, site):
    """Opens a page of the book, given by its name below the site."""
    visits = []

    def open_(name: str, width: int = 1280, scheme: str = "light", query: str = "") -> Visit:
        visits.append(Visit(browser, address(site, name, query), width, scheme))
        return visits[-1]

    yield open_
    for each in visits:
        each.close()
