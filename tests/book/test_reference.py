"""The reference has a section for every module that a reader may import."""

from __future__ import annotations

import re

from tools.lessons import ROOT

INTERNAL = {"minidiff.__main__"}  # the command line documents itself with --help


def test_every_public_module_is_in_the_reference():
    parts = ("", "data", "metrics", "models", "systems", "training")
    folders = [ROOT / "minidiff" / part for part in parts]
    files = [path for folder in folders for path in folder.glob("*.py") if path.name != "__init__.py"]
    public = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files} - INTERNAL
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "book/api").glob("*.md"))
    documented = set(re.findall(r"^\.\. automodule:: (\S+)$", pages, re.M))
    assert public - documented == set(), "add them to a page of book/api"
