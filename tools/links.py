"""The gate over links: what a page, a lesson or the README points to is there; addresses are only read, not called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tools.lessons import ROOT

CODE = re.compile(
    r"^ *(`{3,}|~{3,})[^\n]*\n[\s\S]*?^ *\1`* *$|\$\$[\s\S]*?\$\$|\$[^$\n]*\$|(`+)(?!`).*?(?<!`)\2(?!`)", re.M
)
LINK = re.compile(r"\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)|<(https?:[^>]*)>|(?:href|src)=\"([^\"]*)\"")
PATH = re.compile(r"`((?:book|data|lessons|minidiff|notebooks|tests|tools)/[a-z0-9_./-]*)`")  # no placeholders
PAGES = ("README.md", "CONTRIBUTING.md", "book/**/*.md", "lessons/*.md")


def pages(root: Path = ROOT) -> list[Path]:
    """The files that people read."""
    return sorted(path for pattern in PAGES for path in root.glob(pattern))


def dead(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Links of a page to files and headings that are not there, and names of files of the project that are not."""
    text = path.read_text(encoding="utf-8")
    plain = CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in LINK.finditer(plain):
        link = next(group for group in (*match.groups(), "") if group is not None)
        if problem := _wrong(link, path):
            yield f"{path}:{1 + text.count(chr(10), 0, match.start())}: the link {link!r} {problem}"
    for match in PATH.finditer(text):
        if not (root / match[1]).exists():
            yield f"{path}:{1 + text.count(chr(10), 0, match.start())}: there is no {match[1]!r}"


def _wrong(link: str, page: Path) -> str:
    """What is wrong with a link; nothing where it leads somewhere."""
    address = urlsplit(link)
    if address.scheme in ("http", "https"):
        good = re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", address.netloc) and not re.search(r"[\s<>\"]", link)
        return "" if good else "is no address"
    if address.scheme == "mailto":
        return "" if "@" in address.path else "is no address"
    target = page.parent / address.path if address.path else page
    if address.scheme or not link or not target.exists():
        return "leads nowhere"
    if address.fragment and target.suffix == ".md" and address.fragment not in anchors(target):
        return f"names no heading of {target.name}"
    return ""


def anchors(path: Path) -> set[str]:
    """What a Markdown file can be entered at: its headings, as GitHub and MyST name them, and its labels."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#{1,6} +(.*)$", text, re.M)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\(([\w:.-]+)\)=", text, re.M))
