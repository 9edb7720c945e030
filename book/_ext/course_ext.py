"""What this book needs beyond Jupyter Book: the status page, launch buttons for the generated notebooks, quiet pages.

Runs inside Sphinx; `tools/book.py` sets the environment it reads.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from myst_nb.core.execute import cache as execute
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
STATUS = "book/status"
LAUNCHERS = {"Colab", "Binder"}
LIVE = re.compile(r"^(:?tags: \[)(?=[^\]]*\blive\b)", re.M)

PRELOAD = re.compile(r'^\s*<link rel="preload"[^>]*as="font"[^>]*>\n|<link rel="preload"[^>]*as="font"[^>]*>', re.M)


def use_cache(app, config):
    """Outputs are kept where `tools/cache.py` says; a new folder also makes Sphinx read every page again."""
    if "MINIDIFF_CACHE" in os.environ:
        config.nb_execution_cache_path = os.environ["MINIDIFF_CACHE"]
        execute.single_nb_execution = refuse


def refuse(notebook, *, cwd, **options):
    """Takes the place of running a page: `tools/run_lessons.py` has run them all, each once."""
    raise ExtensionError(
        f"a page of {cwd} is not in the cache as the book reads it; tools/run_lessons.py puts it there"
    )


def leave_out_live_cells(app, docname, source):
    """A cell that needs a running kernel stays in the notebooks and out of the book."""
    source[0] = LIVE.sub(r"\1remove-cell, skip-execution, ", source[0])


class CourseStatus(Directive):
    """`{course-status} NAME`: one table of `tools/status.py`, made from the records of this very build."""

    required_arguments = 1

    def run(self):
        table = status_tables()[self.arguments[0]]
        box = nodes.container(classes=["status", "full-width"])
        self.state.nested_parse(StringList(table.splitlines(), "tools/status.py"), self.content_offset, box)
        return [box]


@functools.cache
def status_tables():
    sys.path.insert(0, str(ROOT))
    try:
        from tools.status import tables
    finally:
        sys.path.remove(str(ROOT))
    return tables()


def read_status_last(app, env, docnames):
    """The records it shows are written while the lessons are read."""
    if STATUS in docnames:
        docnames.remove(STATUS)
        docnames.append(STATUS)


def status_is_outdated(app, env, added, changed, removed):
    """No file of the status page changes when a record does."""
    return [STATUS] if STATUS in env.found_docs else []


def point_at_notebooks(app, pagename, templatename, context, doctree):
    """The theme links a lesson's own `.md`, which Colab cannot open; other pages have nothing to launch."""
    source = f"{pagename}.md"
    notebook = f"notebooks/{Path(pagename).name}.ipynb"
    kept = []
    for group in context.get("header_buttons", []):
        buttons = group.get("buttons", [])
        launchers = [b for b in buttons if b.get("text") in LAUNCHERS]
        if launchers and not pagename.startswith("lessons/"):
            continue
        for button in launchers:
            button["url"] = button["url"].replace(source, notebook)
        kept.append(group)
    if "header_buttons" in context:
        context["header_buttons"] = kept


def without_thebe(app, pagename, templatename, context, doctree):
    """Jupyter Book always loads sphinx-thebe, whose constants are declared twice: a script error on every page."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script}{getattr(script, 'attributes', {})}".lower()
    ]


def without_preloads(app, exception):
    """The theme preloads its icon fonts; opened from a folder instead of a server, each preload is an error."""
    if exception is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            quiet = PRELOAD.sub("", text)
            if quiet != text:
                page.write_text(quiet, encoding="utf-8")


def plain_marks(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`; reStructuredText would read |x| and * as its own marks."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]+`)", line)
        parts[::2] = [re.sub(r"(?<!\\)([|*])", r"\\\1", text) for text in parts[::2]]
        parts[1::2] = [code if code.startswith("``") else f"`{code}`" for code in parts[1::2]]
        lines[i] = "".join(parts)


def setup(app):
    app.add_directive("course-status", CourseStatus)
    app.connect("config-inited", use_cache)
    app.connect("source-read", leave_out_live_cells)
    app.connect("env-before-read-docs", read_status_last)
    app.connect("env-get-outdated", status_is_outdated)
    app.connect("html-page-context", point_at_notebooks, priority=900)
    app.connect("html-page-context", without_thebe, priority=901)
    app.connect("build-finished", without_preloads)
    app.connect("autodoc-process-docstring", plain_marks, priority=100)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
