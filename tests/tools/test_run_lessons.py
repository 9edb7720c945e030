"""What nbval's run of a page leaves in the cache, against nbclient, which runs the same page by itself."""

from __future__ import annotations

import json

import pytest
from nbclient import execute

from tools import run_lessons

PAGE = """---
jupytext: {text_representation: {extension: .md, format_name: myst}}
kernelspec: {name: python3, display_name: Python 3, language: python}
---

# A page

```{code-cell} ipython3
:tags: [hide-input]
import sys

import matplotlib.pyplot as plt
from IPython.display import clear_output, display
from minidiff.course import begin, claim
from myst_nb import glue

begin("page")
print("first")
print("problem", file=sys.stderr)
```

```{code-cell} ipython3
display({"text/plain": "plain", "text/html": "<b>rich</b>", "application/json": {}}, raw=True, metadata={"x": 1})
print("after")
1 + 1
```

```{code-cell} ipython3
:tags: [live]

print("needs a front end")
```

```{code-cell} ipython3
glue("number", 0.1234567, display=False)
fig, ax = plt.subplots(figsize=(1, 1))
ax.plot([1, 2]);
```

```{code-cell} ipython3
"not shown";
```

```{code-cell} ipython3
fig, ax = plt.subplots(figsize=(1, 1))
glue("figure", fig, display=False)
```

```{code-cell} ipython3
handle = display("old", display_id=True)
handle.update("new")
```

```{code-cell} ipython3
print("gone")
clear_output(wait=True)
print("stays")
handle.update("newest")
```

```{code-cell} ipython3
claim("one-is-one", "One is one.", 1.0, above=0.5, tier="exact", source="nobody", negative={"wrong": 0.1})
"value"
```
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tree of one page, filled."""
    root = tmp_path_factory.mktemp("course")
    (root / "lessons").mkdir()
    (root / "lessons/01_page.md").write_text(PAGE)
    assert run_lessons.fill(root) == []
    return root


def outputs(notebook):
    """Outputs and count of every cell that is no live one; neighbouring texts of one stream are one text."""
    found = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and "live" not in cell.metadata.get("tags", []):
            joined = []
            for output in map(dict, cell.outputs):
                if joined and output["output_type"] == "stream" and joined[-1].get("name") == output["name"]:
                    joined[-1]["text"] += output["text"]
                else:
                    joined.append(output)
            found.append((cell.execution_count, joined))
    return found


def test_a_page_shows_what_nbclient_makes_it_show(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_RECORDS", str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    shown = run_lessons.shown(root / "lessons/01_page.md", root)
    wanted = execute(run_lessons.read(root / "lessons/01_page.md"), cwd=str(tmp_path))
    assert outputs(shown) == outputs(wanted)
    assert shown.metadata["language_info"] == wanted.metadata["language_info"]
    live = next(cell for cell in shown.cells if "live" in cell.metadata.get("tags", []))
    assert live.outputs == [] and live.metadata["tags"] == ["remove-cell", "skip-execution", "live"]


def test_glued_values_and_every_kind_of_data_are_there(root):
    cells = [c for c in run_lessons.shown(root / "lessons/01_page.md", root).cells if c.cell_type == "code"]
    glued = {
        o.metadata["scrapbook"]["name"]: o for c in cells for o in c.outputs if "scrapbook" in o.get("metadata", {})
    }
    assert {"number", "figure"} <= set(glued)
    assert "application/papermill.record/image/png" in glued["figure"].data
    assert set(cells[1].outputs[0].data) == {"text/plain", "text/html", "application/json"}
    assert [o.get("data", {}).get("text/plain") for o in cells[6].outputs] == ["'newest'"]
    assert [o.get("text") for o in cells[7].outputs] == ["stays\n"]


def test_a_semicolon_hides_a_value_and_a_figure_is_shown_once(root):
    """A kernel that is asked to keep no history does not see the semicolon."""
    cells = [c for c in run_lessons.shown(root / "lessons/01_page.md", root).cells if c.cell_type == "code"]
    assert ["image/png" in o.get("data", {}) for o in cells[3].outputs] == [False, True] and cells[4].outputs == []


def test_the_record_of_its_claims_comes_from_the_same_run(root):
    (path,) = root.glob("_build/.cache/*/records/*.json")
    (page,) = run_lessons.pages(run_lessons.open_cache(root), root)
    assert path.name == "page.json" and json.loads(path.read_text()) == page.kept["record"]
    assert [claim["id"] for claim in page.kept["record"]["claims"]] == ["one-is-one"]


def test_records_follow_the_text_of_the_lesson(root):
    """A page that is not what was run has no record; as soon as it is, it has its own again."""
    path = root / "lessons/01_page.md"
    outputs = run_lessons.open_cache(root)
    path.write_text(PAGE.replace("1 + 1", "1 + 2"))
    run_lessons.write_records(outputs, root)
    assert list(root.glob("_build/.cache/*/records/*.json")) == [] and run_lessons.times(root) == {}
    path.write_text(PAGE)
    assert run_lessons.fill(root) == []
    assert [p.name for p in root.glob("_build/.cache/*/records/*.json")] == ["page.json"]


def test_a_change_below_a_running_lesson_is_noticed(root, monkeypatch):
    path = root / "lessons/01_page.md"
    path.write_text(PAGE.replace("1 + 1", "1 + 3"))
    (root / "minidiff").mkdir()

    def run(page, environment):
        (root / "minidiff/new.py").write_text("x = 1")
        return run_lessons.Ran(page, 1.0, notebook=page.notebook)

    monkeypatch.setattr(run_lessons, "run", run)
    assert run_lessons.fill(root) == ["what the lessons import or read was changed while they ran; run them again"]
    assert run_lessons.times(root) == {}


COUNTED = (
    PAGE[: PAGE.index("```{code-cell}")]
    + """
```{code-cell} ipython3
with open("LOG", "a") as log:
    log.write("ran ")
```
"""
)


def test_a_page_runs_again_only_when_its_code_or_what_it_imports_was_changed(tmp_path, capsys):
    for name in ("lessons", "minidiff"):
        (tmp_path / name).mkdir()
    first = COUNTED.replace("LOG", str(tmp_path / "log"))
    text, code = first.replace("# A page", "# A page of text"), first.replace("ran ", "ran again ")
    for page, runs in ((first, 1), (first, 1), (text, 1), (code, 3), (first, 3)):
        (tmp_path / "lessons/01_page.md").write_text(page)
        assert run_lessons.fill(tmp_path) == []
        assert len((tmp_path / "log").read_text().split()) == runs
    assert "kept" in capsys.readouterr().out
    (tmp_path / "minidiff/module.py").write_text("x = 1")
    assert run_lessons.fill(tmp_path) == []
    assert len((tmp_path / "log").read_text().split()) == 4 and "kept" not in capsys.readouterr().out
