"""A disk that is full: nothing old is lost, nothing half stays, one line says what to do, and the same command goes on.

Full is simulated by the largest size of a file that the system lets a process write, which stops a write in its middle.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.course.grading.book import GradeBook
from minidiff.store import load, weights_path

TINY = str(Path(__file__).parents[1] / "training/tiny.yaml")


@contextmanager
def room_for(size: int):
    """No file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files; not the records of a training, which grow, nor the pictures that are kept for going on."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(p): (folder / p).read_bytes() for p in paths if "log" not in p.parts and ".parts" not in str(p)}


@pytest.fixture
def folder(tmp_path):
    """Twelve noisy pictures in two classes, and a published checkpoint."""
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / f"pictures/{i % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i % 2}/{i}.png")
    shutil.copytree(weights_path("digits").parent, tmp_path / "digits")
    return tmp_path


SAMPLE = ("sample", "digits", "--steps", 1, "--cpu", "--quiet", "--batch", 8, "--out")
TRAIN = ("train", TINY, "--cpu", "--quiet", "--out", "{}/run", "training.final_lr=1.0")
EVALUATE = ("evaluate", "{}/digits", "--steps", 1, "--images", 140, "--draws", 20, "--cpu", "--quiet", "--json")
CASES = {  # name -> the room in bytes, what goes before, what meets the full disk, what is new after it
    "sample npz": (3000, (*SAMPLE, "{}/x.npz", "--count", 2), (*SAMPLE, "{}/x.npz", "--count", 64), set()),
    "sample, not one batch": (300, None, (*SAMPLE, "{}/x.png", "--count", 64), set()),
    "sample png": (1500, (*SAMPLE, "{}/x.png", "--count", 1), (*SAMPLE, "{}/x.png", "--count", 64), set()),
    "train": (500_000, (*TRAIN, "training.steps=2"), (*TRAIN, "training.steps=4"), set()),
    "train, the first": (500_000, None, (*TRAIN, "training.steps=2"), {"run/.lock"}),
    "publish": (
        50_000,
        (*TRAIN, "training.steps=2"),
        (*TRAIN, "training.steps=2", "--publish", "{}/out"),
        {"out/.lock"},
    ),
    "evaluate": (2000, None, (*EVALUATE, "{}/x.json"), set()),
    "evaluate onto the card": (4000, None, (*EVALUATE, "{}/x.json", "--card"), set()),
    "pack": (3000, None, ("data", "pack", "{}/pictures", "{}/s", "--per-shard", 4, "--quiet"), {"s/index.json"}),
    "embed": (
        3000,
        None,
        ("data", "embed", "{}/pictures", "shapes16-classifier-clean", "{}/e", "--quiet", "--device", "cpu"),
        {"e/index.json"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_command_goes_on(folder, name):
    room, before, command, new = CASES[name]
    command = [str(word).format(folder) for word in command]
    if before:
        result = run(*(str(word).format(folder) for word in before))
        assert result.exit_code == 0, result.output
    said = [f"tiny: 2 steps done, weights in {folder}/run/last.safetensors"] if name == "publish" else []
    old = contents(folder)
    with room_for(room):
        result = run(*command)
    *before, last = result.output.strip().splitlines()
    assert result.exit_code == 1 and before == said, result.output
    assert last.startswith("minidiff: ") and "File too large; what was written before is as it was: make room" in last
    now = contents(folder)
    assert {path: now[path] for path in old} == old and now.keys() - old.keys() == new
    assert not list(folder.rglob(".*.tmp"))
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert not list(folder.rglob("*.parts"))


def test_what_was_published_before_is_whole_when_the_new_card_does_not_fit(folder, monkeypatch):
    """Weights and card take their names together: else the old card would describe the new weights."""
    train = [str(word).format(folder) for word in TRAIN]
    publish = ["--publish", str(folder / "out")]
    assert run(*train, "training.steps=1", *publish).exit_code == 0
    old, fsync, calls = contents(folder / "out"), os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:  # of the weights, then of the card
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    assert run(*train, "training.steps=2").exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = run(*train, "training.steps=2", *publish)
    assert result.exit_code == 1 and "card.json: No space left on device" in result.output
    assert contents(folder / "out") == old and load(str(folder / "out"))
    assert run(*train, "training.steps=2", *publish).exit_code == 0
    assert contents(folder / "out").keys() == old.keys() and contents(folder / "out") != old


def test_pictures_that_were_kept_are_not_drawn_again(folder, monkeypatch):
    command = [str(word).format(folder) for word in (*SAMPLE, "{}/x.npz", "--count", 64)]
    with room_for(3000):
        assert run(*command).exit_code == 1
    monkeypatch.setattr("minidiff.metrics.drawing.drawn", lambda *arguments: iter(()))
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert len(np.load(folder / "x.npz")["arr_0"]) == 64


def test_grades_are_written_where_there_is_room(tmp_path, monkeypatch):
    """Or it is said that they are nowhere; what was there stays, and no half of a file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "here/grades.json"
    book = GradeBook(None, path, [])
    book.write([{"handin": "one"}])
    with room_for(10), pytest.raises(OSError, match=r"cannot be written any more .* nor elsewhere .* make room"):
        book.finish([{"handin": "one"}, {"handin": "two"}])
    assert json.loads(path.read_text()) == [{"handin": "one"}]
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["grades.json"] and not [*tmp_path.glob("else*/*")]
