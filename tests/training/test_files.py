"""Files survive full disks, and file systems that cannot do everything."""

import errno
import os

import pytest

from minidiff.files import remove_leftovers, write_atomically


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
