"""Outputs are proved writable before the work, and nothing of the user's is replaced."""

import errno
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.files import require_writable, written_atomically

SAMPLE = ["sample", "digits", "--count", "2", "--steps", "1", "--cpu"]


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def never(*args, **kwargs):
    raise AssertionError("nothing is computed for what cannot be written")


@pytest.fixture
def no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("arguments", "option", "name", "work"),
    [
        (SAMPLE, "--out", "x.png", "minidiff.metrics.drawing.Drawing.draw"),
        (SAMPLE, "--out", "x.npz", "minidiff.metrics.drawing.Drawing.draw"),
        (["evaluate", "digits", "--images", "140", "--cpu"], "--json", "x.json", "minidiff.metrics.evaluation.judge"),
        (["bench"], "--json", "x.json", "minidiff.bench.bench"),
        (["train", "digits", "--cpu", "--quiet"], "--out", "run", "minidiff.training.loop._train"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(arguments, option, name, work, no_folder, monkeypatch):
    monkeypatch.setattr(work, never)
    result = run(*arguments, option, no_folder / name)
    assert result.exit_code == 2, result.output
    assert "cannot be written" in result.output and len(result.output.strip().splitlines()) == 1


def test_numbers_of_others_are_not_replaced(tmp_path):
    theirs = tmp_path / "results.json"
    for content in ('{"accuracy": 1}', "no JSON", "[1]"):
        theirs.write_text(content, encoding="utf-8")
        result = run(*SAMPLE, "--out", tmp_path / "results.png")
        assert result.exit_code == 2 and "choose another --out" in result.output
        assert theirs.read_text(encoding="utf-8") == content and not (tmp_path / "results.png").exists()
    theirs.unlink()
    for _ in range(2):
        assert run(*SAMPLE, "--out", tmp_path / "results.png").exit_code == 0
    assert json.loads(theirs.read_text(encoding="utf-8"))["system"] == "digits"


@pytest.mark.parametrize("name", ["x.npz", "x.png"])
def test_a_full_disk_leaves_what_was_there_and_is_one_line(tmp_path, monkeypatch, name):
    assert run(*SAMPLE, "--out", tmp_path / name).exit_code == 0
    there = lambda: {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    before = there()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run(*SAMPLE, "--seed", 5, "--out", tmp_path / name)
    assert result.exit_code == 1 and len(result.output.strip().splitlines()) == 1
    assert "No space left on device; what was written before is as it was: make room" in result.output
    assert there() == before


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(RuntimeError), written_atomically(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with written_atomically(path) as file:
        np.savez(file, a=np.arange(3))
    assert np.load(path)["a"].tolist() == [0, 1, 2] and [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    require_writable(tmp_path / "new/y.npz")
    with pytest.raises(ValueError, match="new cannot be written \\(it is a folder\\)"):
        require_writable(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir() if p.name != "new"] == ["x.npz"]


def test_records_that_are_not_there(tmp_path):
    result = run("claims", "--records", tmp_path / "nowhere")
    assert result.exit_code == 2 and "there is no folder" in result.output
