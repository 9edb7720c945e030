"""A page of the book in a browser."""

from __future__ import annotations

from pathlib import Path

TYPESET = "window.MathJax?.startup?.promise"  # kept when every formula of the page is drawn


def address(site: Path, name: str, query: str = "") -> str:
    """Where a page of the rendered book lies, given by its name below the site."""
    return (site / f"{name}.html").as_uri() + query


class Visit:
    """One page open in the browser, and what has gone wrong on it so far."""

    def __init__(self, browser, address: str, width: int = 1280, scheme: str = "light") -> None:
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

    def close(self) -> None:
        self.context.close()
