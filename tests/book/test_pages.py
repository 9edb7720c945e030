"""Every page of the built book, opened from its folder in headless Chromium at phone and desktop width.

Opening a page and drawing its formulas takes most of the time, so each is opened once a width.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from visits import Visit, address

from tools.lessons import ROOT, repository


def documents(entry: dict) -> list[str]:
    """The files that an entry of the table of contents and all below it name."""
    below = [*entry.get("parts", []), *entry.get("chapters", []), *entry.get("sections", [])]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [name for child in below for name in documents(child)]


PAGES = documents(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
LESSONS = [page for page in PAGES if page.startswith("lessons/")]
ALL = [*PAGES, "genindex", "search"]
PHONE = 390  # pixels of width


@pytest.fixture(scope="module", params=ALL)
def opened(request, browser, site):
    """Each page at desktop width: pytest asks all that it has to ask of one before it opens the next."""
    visit = Visit(browser, address(site, request.param))
    visit.name = request.param
    yield visit
    visit.close()


def assert_loaded(visit: Visit) -> None:
    assert visit.troubles == []
    wide = visit.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels wider than the screen"


@pytest.mark.parametrize("name", ALL)
def test_page_loads_and_fits_a_phone(visit, name):
    assert_loaded(visit(name, PHONE))


def test_page_loads_and_fits(opened):
    assert_loaded(opened)


def test_formulas_are_typeset(opened):
    bare = opened.page.evaluate("""[...document.querySelectorAll('.bd-article .math')]
        .filter(e => !e.querySelector('mjx-container')).map(e => e.textContent.slice(0, 80))""")
    wrong = opened.page.evaluate(
        "[...document.querySelectorAll('mjx-merror')].map(e => e.parentElement.parentElement.textContent)"
    )
    assert bare == []
    assert wrong == [], "formulas with an unknown macro or broken TeX"


def test_pictures_are_there_and_described(opened):
    pictures = opened.page.evaluate("""[...document.querySelectorAll('.bd-article img')]
        .map(e => [e.getAttribute('alt') || '', e.naturalWidth, e.getAttribute('src').slice(-60)])""")
    assert [src for alt, width, src in pictures if not alt.strip()] == [], "pictures without alt text"
    assert [src for alt, width, src in pictures if not width] == [], "pictures that did not load"


def test_lessons_alone_have_buttons_that_open_their_student_notebook(opened):
    if opened.name not in LESSONS:
        assert opened.page.locator(".dropdown-launch-buttons").count() == 0
        return
    links = opened.page.evaluate("[...document.querySelectorAll('.dropdown-launch-buttons a')].map(e => e.href)")
    url, branch = repository()
    slug = url.partition("github.com/")[2]
    notebook = f"notebooks/{Path(opened.name).name}.ipynb"
    assert f"https://colab.research.google.com/github/{slug}/blob/{branch}/{notebook}" in links
    assert any("mybinder.org" in link and notebook in link for link in links)
    assert len(links) == 2


def test_sliders_move(opened):
    """The last that a page is asked, since it does not look the same afterwards."""
    for slider in opened.page.locator(".frame-slider").all():
        handle, output, image = slider.locator("input"), slider.locator("output"), slider.locator("img")
        seen = []
        for key in ("Home", "End"):
            handle.press(key)
            seen.append((output.text_content(), image.get_attribute("src"), image.get_attribute("alt")))
            assert all(part.strip() for part in seen[-1])
            assert handle.get_attribute("aria-valuetext") == output.text_content()
        (first, picture, _), (last, other, _) = seen
        assert first != last and picture != other, "moving the slider changes neither value nor picture"
    assert opened.troubles == []


def test_lessons_have_sliders(site):
    assert any("frame-slider" in (site / f"{name}.html").read_text(encoding="utf-8") for name in LESSONS)


def test_the_first_page_leads_to_the_book(site):
    assert f'url={PAGES[0]}.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_solutions_are_not_for_download(site):
    assert not list(site.rglob("*.ipynb")) and not (site / "_sources").exists()


def test_search_finds_a_lesson(visit):
    found = visit("search", query="?q=guidance")
    found.page.wait_for_selector("#search-results li a")
    assert found.troubles == []
    assert found.page.locator("#search-results li a[href*='lessons/']").count() >= 1


@pytest.mark.parametrize("name", PAGES[:2])
def test_figures_keep_the_page_behind_them_in_dark_mode(visit, name):
    page = visit(name, scheme="dark").page
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    shades = page.evaluate("""[...document.querySelectorAll('.bd-article img')]
        .map(e => getComputedStyle(e)).map(s => [s.backgroundColor, s.filter])""")
    assert shades and all(shade == ["rgba(0, 0, 0, 0)", "none"] for shade in shades)
