"""What pages, lessons and the help tell people to run: every command is read, the README's run, every link leads."""

from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from tools import commands, links
from tools.lessons import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORTER = {
    "sample": ["--count", "1", "--steps", "2"],
    "train": ["training.steps=2", "training.batch=4", "--quiet"],
    "evaluate": ["--steps", "2", "--draws", "20", "--quiet"],
    "grade": ["--time-limit", "100"],
}
FEWER = {"class": ["--images", "140"], "caption": ["--captions", "8", "--again", "2"]}  # for evaluate
NOT_HERE = {
    "bench": "takes minutes",
    "download": "needs a network",
    "data": "needs ImageNet",
    "--weights": "needs a released file",
    "--dry-run": "measures steps of a network of 296 million parameters",
}
RUN = [
    words[1:]
    for _, words in commands.commands(README)
    if words[0] == "minidiff" and len(words) > 1 and not NOT_HERE.keys() & set(words)
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the README's commands read."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (16, 16), (200, 30, 30, 0)).save("picture.png")
    (tmp_path / "hand-ins").mkdir()
    (tmp_path / "hand-ins/ada.py").write_text("marginal = None\n")
    return tmp_path


def test_every_command_can_be_read():
    wrong = ((place, " ".join(words), commands.wrong(words)) for place, words in commands.shown())
    assert [each for each in wrong if each[2]] == []


@pytest.mark.parametrize("words", RUN, ids=" ".join)
def test_the_commands_of_the_readme_run(folder, words):
    more = SHORTER.get(words[0], [])
    if words[0] == "evaluate":
        more = more + FEWER["caption" if "--captions" in words else "class"]
    done = CliRunner().invoke(main, [*words, *more])
    assert done.exit_code == 0, done.output
    left = {path.name for path in folder.rglob("*")} - {"picture.png", "hand-ins", "ada.py"}
    assert left or words[0] in ("info", "doctor")


def test_the_python_of_the_readme_runs():
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    world: dict = {}
    for block in blocks:
        if "check(" not in block:  # an exercise's answer is the reader's
            exec(block, world)
    assert world["images"].shape == (16, 1, 8, 8)


@pytest.mark.parametrize("page", links.pages(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert list(links.dead(page)) == []
