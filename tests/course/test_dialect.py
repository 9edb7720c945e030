"""Hand-ins that are honest work in another dress: encodings, magics, exports, ``await``, state from other cells."""

from __future__ import annotations

import json
import textwrap

import jupytext
import nbformat
import pytest

from minidiff.course.grading.formats import Block, decode, is_hand_in, read
from minidiff.course.grading.handin import execute

CODE = "# Zoë\nanswer = 'ä' + str(6 * 7)\n"


def run(*cells, tags=()):
    found, errors = execute([Block(textwrap.dedent(cell).strip("\n"), tags) for cell in cells], ["answer"])
    return found.get("answer", errors)


def handed_in(folder, content, name="a.py"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found, errors = execute(read(folder / name).blocks, ["answer"])
    return found.get("answer", errors)


@pytest.mark.parametrize(
    "content",
    [
        CODE.encode(),
        CODE.encode("utf-8-sig"),
        CODE.encode("utf-16"),
        b"\xfe\xff" + CODE.encode("utf-16-be"),
        f"# -*- coding: latin-1 -*-\n{CODE}".encode("latin-1"),
        f"#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\n{CODE}".encode("cp1252"),
        CODE.replace("\n", "\r\n").encode("utf-8-sig"),
        CODE.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + CODE.encode("utf-8-sig"),
        CODE.replace("answer", "\ufeffanswer").encode(),
        CODE.encode("utf-16-le"),
        CODE.encode("utf-32-be"),
    ],
)
def test_encodings_of_a_file(tmp_path, content):
    assert handed_in(tmp_path, content) == "ä42"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["a.ipynb", "a.py"])
def test_encodings_of_a_notebook(tmp_path, name, encoding, mark):
    """Also where an editor put a mark before the one that was there, and before each cell."""
    cell = {"cell_type": "code", "source": (mark + CODE).splitlines(True), "metadata": {}}
    text = mark + json.dumps({"cells": [cell], "metadata": {}}, ensure_ascii=False)
    assert handed_in(tmp_path, text.encode(encoding), name) == "ä42"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_a_notebook_as_text(tmp_path, encoding):
    text = f"---\njupytext: 1\n---\n```{{code-cell}}\n{CODE}\n```\n"
    assert handed_in(tmp_path, text.encode(encoding), "a.md") == "ä42" and is_hand_in(tmp_path / "a.md")


@pytest.mark.parametrize("name", ["a.ipynb", "a.py", "a.md"])
@pytest.mark.parametrize("text", ['{"cells": "jupytext ä"}', "\n\n\njupytext ä"])
def test_other_encodings_are_named(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode("cp1252"))
    with pytest.raises(ValueError, match=r"not text .*; save it as UTF-8"):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [b"# coding: nosuch\nx = 1", b"x = '\xff'", b"# coding: rot13\nx = 1"])
def test_what_is_no_text_is_refused(content):
    with pytest.raises((ValueError, LookupError)):
        decode(content)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("x = !ls\nanswer = 42", 42),
        ("x = %timeit -o 1 + 1\nprint(f'{x.average:.3f}')\nanswer = 42", 42),
        ("!pip install a \\\n    b --quiet\nanswer = 42", 42),
        ("if True:\n    !pip install \\\n      a\n    answer = 42", 42),
        ("%time answer = 42", 42),
        ("%%time\nanswer = 42", 42),
        ("\n%%capture out\n!ls\nanswer = 42", 42),
        ("%timeit 1 + 1\n%matplotlib inline\nhelp?\nanswer = 42", 42),
        ("name = input('Your name: ')\nanswer = 42 if name == '' else 0", 42),
        ("answer = '''%s\n!ls \\\n''' % 42", "42\n!ls "),
        ("get_ipython().system('ls')\nget_ipython().run_line_magic('matplotlib', 'inline')\nanswer = 42", 42),
        ("get_ipython().run_cell_magic('time', '', 'answer = 42\\n')", 42),
        ("get_ipython().run_line_magic('time', 'answer = 42')", 42),
        ("x = get_ipython().getoutput('ls')\nanswer = 42 + len(list(x))", 42),
        ("from google.colab import drive\ndrive.mount('/content/drive')\nanswer = 42", 42),
        ("import google.colab\ngoogle.colab.files.upload()\nanswer = 42", 42),
        ("try:\n    import google.colab\n    answer = 0\nexcept ImportError:\n    answer = 42", 42),
        ("import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 42\nanswer = await f()", 42),
        ("import asyncio\nasync def f():\n    yield 42\nanswer = [x async for x in f()][0]", 42),
    ],
)
def test_cells(cell, value):
    assert run(cell) == value


@pytest.mark.parametrize(
    "changing",
    [
        "values.sort()",
        "values.reverse(); values.reverse(); values.sort()",
        "for i in range(2):\n    values[i], values[1 - i] = 1, 2",
        "for i in (2, 1):\n    values.insert(0, i)",
        "while len(values) < 3:\n    values.insert(0, 1)",
        "if True:\n    with open('/dev/null'):\n        values[0] = 1",
        "try:\n    values.remove(3)\nfinally:\n    values.insert(0, 1)",
    ],
)
def test_state_that_other_cells_make(changing):
    expected = {"values": [3, 1]}
    exec(changing, expected)
    cells = ("values = [3, 1]", changing, "unused = 1 / 0", "def answer():\n    return values[0]")
    assert run(*cells)() == expected["values"][0] and expected["values"][0] != 3


def test_a_file_that_a_cell_writes_is_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    body = "def twice(x):\n    return 2 * x"
    assert run(f"%%writefile written_helper.py\n{body}", "from written_helper import twice\nanswer = twice(21)") == 42
    (tmp_path / "other_helper.py").unlink(missing_ok=True)
    cell = f"get_ipython().run_cell_magic('writefile', 'other_helper.py', {body!r})"
    assert run(cell, "import other_helper\nanswer = other_helper.twice(21)") == 42


def test_a_file_goes_on_after_a_statement_that_fails(tmp_path):
    assert handed_in(tmp_path, "import nowhere_to_be_found\nx = 1 / 0\nanswer = 42\n") == 42
    assert handed_in(tmp_path, "answer = 1 / 0\n")["answer"][0] == "ZeroDivisionError"


def test_a_cell_goes_on_after_a_statement_that_fails():
    assert run("import nowhere_to_be_found\nx = 1 / 0\nanswer = 42") == 42
    assert run("x = 1 / 0\nanswer = x + 1")["answer"][0] == "NameError"


EXPORTED = """#!/usr/bin/env python
# coding: utf-8

# # A title

# In[1]:


get_ipython().run_line_magic('pip', 'install minidiff')
scale = 6


# In[ ]:


import time
time.sleep(15)


# In[12]:


def helper(
    return


# In[3]:


answer = scale * 7
"""
COLAB = '''# -*- coding: utf-8 -*-
"""Lesson.ipynb

Automatically generated by Colab.

Original file is located at
    https://colab.research.google.com/drive/1
"""

!pip install minidiff
from google.colab import drive
drive.mount("/content/drive")
import time
time.sleep(15)

scale = 6

def decorated(f):
    return f

@decorated
def seven():
    """Seven."""
    return 7

answer = scale * seven()
'''


@pytest.mark.parametrize("text", [EXPORTED, COLAB, COLAB.replace("!pip install minidiff", "# nothing")])
def test_an_exported_notebook_does_not_run_whole(tmp_path, text):
    assert handed_in(tmp_path, text) == 42


CELLS = [
    nbformat.v4.new_markdown_cell("# A lesson"),
    nbformat.v4.new_code_cell("factor = 21\nran = []"),
    nbformat.v4.new_code_cell("for x in range(3):\n    ran.append(x)"),
    nbformat.v4.new_code_cell("def answer(x):\n    return factor * x"),
]


@pytest.mark.parametrize("name", ["light", "nomarker", "sphinx"])
def test_jupytexts_exports_without_marks_run_what_the_answer_needs(tmp_path, name):
    """A lesson samples and plots; of an export too grading runs the parts that it needs, not all of it."""
    text = jupytext.writes(nbformat.v4.new_notebook(cells=CELLS), f"py:{name}")
    assert "# %%" not in text
    (tmp_path / "a.py").write_text(text)
    found, errors = execute(read(tmp_path / "a.py").blocks, ["answer"])
    assert (found["answer"](2), errors, found.get("ran", [])) == (42, {}, [])
