"""Systems that lend no shared memory, or too little: without workers nothing needs it, with workers a line says so."""

import errno
import multiprocessing
import os

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minidiff.data.images import ImageFolder
from minidiff.data.workers import loaded


def refuse(*args, **kwargs):
    raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Read-only file system (30)")


def test_without_workers_no_shared_memory_is_needed(folder, monkeypatch):
    (folder / "cat/000.png").write_bytes(b"")
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    images = ImageFolder(folder)
    assert images.check() == ["cat/000.png"] and len(list(loaded(DataLoader(images)))) == 24


def test_a_system_without_semaphores(monkeypatch):
    def none(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing, "Queue", none)
    with pytest.raises(ValueError, match=r"2 workers .*shared memory.*Read-only.*data\.workers=0, --workers 0"):
        loaded(DataLoader([1, 2], num_workers=2))
    assert [int(i) for i in loaded(DataLoader([1, 2]))] == [1, 2]


class Poor(ImageFolder):
    """What its worker is to hand over finds no room."""

    def __getitem__(self, i):
        refuse()


def test_a_worker_that_finds_no_room(folder):
    ahead = loaded(DataLoader(Poor(folder), num_workers=1))
    with pytest.raises(ValueError, match=r"1 workers .*Read-only file system \(30\).*data\.workers=0"):
        next(ahead)


class Wrong(ImageFolder):
    def __getitem__(self, i):
        raise RuntimeError("something else")


def test_other_faults_are_not_taken_for_it(folder):
    with pytest.raises(RuntimeError, match="something else"):
        next(loaded(DataLoader(Wrong(folder), num_workers=1)))


@pytest.mark.parametrize("room", ["read-only", "full"])
def test_where_the_system_itself_refuses(room, tmp_path):
    """Tried on a real mount, where this process may make one."""
    import subprocess
    import sys

    for i in range(2):
        Image.new("RGB", (300, 300)).save(tmp_path / f"{i}.png")
    option = {"read-only": "ro", "full": "size=4k"}[room]
    program = (
        "import sys; from torch.utils.data import DataLoader; from minidiff.data.images import ImageFolder\n"
        "from minidiff.data.workers import loaded\n"
        "images = ImageFolder(sys.argv[1])\n"
        "assert len(list(loaded(DataLoader(images)))) == 2\n"
        "try: list(loaded(DataLoader(images, num_workers=1)))\n"
        "except ValueError as error: print(error)"
    )
    mount = f"mount -t tmpfs none /dev/shm && mount -o remount,{option} /dev/shm"
    command = ["unshare", "-m", "sh", "-c", f'{mount} || exit 77; exec "$0" -c "$1" "$2"']
    try:
        run = subprocess.run([*command, sys.executable, program, tmp_path], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if run.returncode == 77 or "unshare" in run.stderr:
        pytest.skip("this process may not mount")
    assert run.returncode == 0 and "data.workers=0" in run.stdout, run.stderr[-2000:]
