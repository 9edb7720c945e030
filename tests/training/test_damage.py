"""Damaged and poisoned checkpoints are refused, and the good one before is named; files survive full disks."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minidiff.files import remove_leftovers, write_atomically
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import load
from minidiff.training import checkpoint
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train

TINY = str(Path(__file__).parent / "tiny.yaml")
RECIPE = load_recipe(TINY, ["training.steps=3"])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    train(RECIPE, Recipe.build, folder, cpu=True, quiet=True)
    return folder


@pytest.fixture
def run(good, tmp_path):
    """A copy of a finished run, to be damaged."""
    for name in ("last", "previous"):
        (tmp_path / f"{name}.safetensors").write_bytes((good / f"{name}.safetensors").read_bytes())
    return tmp_path


def first_half_only(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def renamed(content: bytes) -> bytes:
    return content.replace(b'"step\\": 3', b'"step\\": 2')


@pytest.mark.parametrize("damage", [first_half_only, flipped, renamed, lambda content: content[:-100]])
def test_bytes_that_changed_are_refused_and_the_good_one_before_is_named(run, damage):
    last, previous = run / "last.safetensors", run / "previous.safetensors"
    content = damage(last.read_bytes())
    assert content != last.read_bytes(), "the damage is there"
    kept = previous.read_bytes()
    last.write_bytes(content)
    with pytest.raises(ValueError, match=r"last\.safetensors is .*previous\.safetensors is good and stands at step 2"):
        train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    with pytest.raises(ValueError, match=r"last\.safetensors is"):
        load(str(run))
    assert last.read_bytes() == content and previous.read_bytes() == kept
    last.write_bytes(kept)  # what the message says
    train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    assert load_checkpoint(last)[1]["step"] == 3


def nan(tensors, meta, like):
    name = next(k for k in tensors if k.startswith(like))
    tensors[name].view(-1)[0] = float("nan")


def without(tensors, meta, like):
    for name in [k for k in tensors if k.startswith(like)]:
        del tensors[name]


def halved(tensors, meta, like):
    for name in [k for k in tensors if k.startswith(like)]:
        tensors[name] = tensors[name].half()


def broadcast(tensors, meta, like):
    name = next(k for k in tensors if k.startswith(like) and tensors[k].ndim == 1)
    tensors[name] = tensors[name][:1]


POISON = {
    "NaN weights": (nan, "model.", "not finite: model."),
    "NaN averages": (nan, "ema ", "not finite: ema"),
    "NaN moments": (nan, "optimizer.", "not finite: optimizer."),
    "no moments": (without, "optimizer.", "missing: optimizer."),
    "no averages": (without, "ema ", "missing: ema"),
    "half weights": (halved, "model.", "of another type: model."),
    "a broadcast": (broadcast, "model.", "of another shape: model."),
    "a broadcast moment": (broadcast, "optimizer.", "of another shape: optimizer."),
    "a late step": (lambda tensors, meta, like: meta.update(step=9), "", "step 9 of 3"),
    "a step before the first": (lambda tensors, meta, like: meta.update(step=-1), "", "step -1"),
    "no number of steps": (lambda tensors, meta, like: meta.update(step="2"), "", "step '2'"),
    "no recipe": (lambda tensors, meta, like: meta.pop("recipe"), "", "recipe must be a mapping"),
}


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("poison", POISON)
def test_poisoned_state_is_refused_even_with_a_checksum_of_its_own(run, poison, checksum):
    last, (change, like, message) = run / "last.safetensors", POISON[poison]
    tensors, meta = load_checkpoint(last)
    change(tensors, meta, like)
    last.unlink()  # the tensors may map the file
    if checksum:
        last.write_bytes(checkpoint._content(tensors, meta))
    else:
        save_file(tensors, last, {"format": checkpoint.FORMAT, "meta": json.dumps(meta)})
    content = last.read_bytes()
    with pytest.raises(ValueError, match=rf"{message}.*previous\.safetensors is good"):
        train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    assert last.read_bytes() == content


def test_a_checkpoint_without_a_checksum_still_goes_on(run):
    previous, last = run / "previous.safetensors", run / "last.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_checkpoint(last)[0].items()}  # the file is written over
    tensors, meta = load_checkpoint(previous)
    del meta["unmoved"], meta["images"]
    save_file(tensors, last, {"format": checkpoint.FORMAT, "meta": json.dumps(meta)})
    train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    assert all(torch.equal(v, whole[k]) for k, v in load_checkpoint(last)[0].items())
    with safe_open(last, "pt") as file:
        assert len(file.metadata()["sha256"]) == 64


def test_a_lost_last_checkpoint_does_not_begin_anew(run):
    (run / "last.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint at .*previous\.safetensors is good"):
        train(RECIPE, Recipe.build, run, cpu=True, quiet=True)


def refuse(*args, **kwargs):
    raise OSError(errno.EPERM, "not on this file system")


def test_no_second_names_and_no_fsync_of_folders_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "open", refuse)
    path, kept = tmp_path / "last", tmp_path / "previous"
    for content in (b"one", b"two", b"three"):
        write_atomically(path, content, keep=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"three", b"two")
    assert path.stat().st_ino != kept.stat().st_ino


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_both_checkpoints_and_nothing_else(tmp_path, monkeypatch, after):
    path, kept, fsync, calls = tmp_path / "last", tmp_path / "previous", os.fsync, []
    path.write_bytes(b"two")
    kept.write_bytes(b"one")

    def full(descriptor):
        calls.append(0)
        return fsync(descriptor) if len(calls) <= after else refuse()

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="not on this"):
        write_atomically(path, b"three", keep=kept)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"last": b"two", "previous": b"one"}


def test_temporary_files_of_the_dead_are_removed(tmp_path):
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    for name in (f".last.safetensors.{dead}.tmp", f".last.safetensors.{os.getppid()}.tmp", ".mine.tmp", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [f".last.safetensors.{os.getppid()}.tmp", ".mine.tmp", "notes.txt"]
    )
