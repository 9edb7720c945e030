"""Every page of the built book, opened from its folder in headless Chromium at phone and desktop width."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.lessons import ROOT, repository


def documents(entry: dict) -> list[str]:
    """The files that an entry of the table of contents and all below it name."""
    below = [*entry.get("parts", []), *entry.get("chapters", []), *entry.get("sections", [])]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [name for child in below for name in documents(child)]


PAGES = documents(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
LESSONS = [page for page in PAGES if page.startswith("lessons/")]
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(params=WIDTHS)
def width(request) -> int:
    return WIDTHS[request.param]


@pytest.mark.parametrize("name", [*PAGES, "genindex", "search"])
def test_page_loads_and_fits(visit, name, width):
    opened = visit(name, width)
    assert opened.troubles == []
    wide = opened.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the screen"


def test_the_first_page_leads_to_the_book(site):
    assert f'url={PAGES[0]}.html"' in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_formulas_are_typeset(visit, name):
    page = visit(name).page
    bare = page.evaluate("""[...document.querySelectorAll('.bd-article .math')]
        .filter(e => !e.querySelector('mjx-container')).map(e => e.textContent.slice(0, 80))""")
    wrong = page.evaluate(
        "[...document.querySelectorAll('mjx-merror')].map(e => e.parentElement.parentElement.textContent)"
    )
    assert bare == []
    assert wrong == [], "formulas with an unknown macro or broken TeX"


@pytest.mark.parametrize("name", PAGES)
def test_pictures_are_there_and_described(visit, name):
    pictures = visit(name).page.evaluate("""[...document.querySelectorAll('.bd-article img')]
        .map(e => [e.getAttribute('alt') || '', e.naturalWidth, e.getAttribute('src').slice(-60)])""")
    assert [src for alt, width, src in pictures if not alt.strip()] == [], "pictures without alt text"
    assert [src for alt, width, src in pictures if not width] == [], "pictures that did not load"


@pytest.mark.parametrize("name", LESSONS)
def test_sliders_move(visit, name):
    page = visit(name).page
    for slider in page.locator(".frame-slider").all():
        handle, output, image = slider.locator("input"), slider.locator("output"), slider.locator("img")
        seen = []
        for key in ("Home", "End"):
            handle.press(key)
            seen.append((output.text_content(), image.get_attribute("src"), image.get_attribute("alt")))
            assert all(part.strip() for part in seen[-1])
            assert handle.get_attribute("aria-valuetext") == output.text_content()
        (first, picture, _), (last, other, _) = seen
        assert first != last and picture != other, "moving the slider changes neither value nor picture"


def test_the_book_has_sliders(site):
    assert any("frame-slider" in (site / f"{name}.html").read_text(encoding="utf-8") for name in LESSONS)


@pytest.mark.parametrize("name", LESSONS)
def test_buttons_open_the_student_notebook(visit, name):
    links = visit(name).page.evaluate("[...document.querySelectorAll('.dropdown-launch-buttons a')].map(e => e.href)")
    url, branch = repository()
    slug = url.partition("github.com/")[2]
    notebook = f"notebooks/{Path(name).name}.ipynb"
    assert f"https://colab.research.google.com/github/{slug}/blob/{branch}/{notebook}" in links
    assert any("mybinder.org" in link and notebook in link for link in links)
    assert len(links) == 2


@pytest.mark.parametrize("name", [page for page in PAGES if page not in LESSONS])
def test_other_pages_offer_nothing_to_launch(visit, name):
    assert visit(name).page.locator(".dropdown-launch-buttons").count() == 0


def test_solutions_are_not_for_download(site):
    assert not list(site.rglob("*.ipynb")) and not (site / "_sources").exists()


def test_search_finds_a_lesson(visit):
    opened = visit("search", query="?q=guidance")
    opened.page.wait_for_selector("#search-results li a")
    assert opened.troubles == []
    assert opened.page.locator("#search-results li a[href*='lessons/']").count() >= 1


@pytest.mark.parametrize("name", PAGES[:2])
def test_figures_keep_the_page_behind_them_in_dark_mode(visit, name):
    page = visit(name, scheme="dark").page
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    shades = page.evaluate("""[...document.querySelectorAll('.bd-article img')]
        .map(e => getComputedStyle(e)).map(s => [s.backgroundColor, s.filter])""")
    assert shades and all(shade == ["rgba(0, 0, 0, 0)", "none"] for shade in shades)
