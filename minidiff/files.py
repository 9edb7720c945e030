"""Files that are whole or not there, their checksums, and folders that one process at a time writes to."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LEFT = re.compile(r"\.(.+)\.(\d+)\.tmp")  # a temporary file: what it was to be, and the process that wrote it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the disk, of the user's share, in one file


def write_atomically(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Write, fsync, rename: after a crash at any moment the file is either the old one or the new one.

    Args:
        path: The file.
        content: What it holds afterwards.
        keep: Where a copy of the file before goes. A copy, as not every file system knows second names.

    Raises:
        OSError: when the disk is full, say; the file before is untouched and no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, copy = _temporary(path), keep and _temporary(keep)
    try:
        with _synced(temporary, path) as file:
            file.write(content)
        if copy and path.exists():
            with open(path, "rb") as before, _synced(copy, keep) as file:
                shutil.copyfileobj(before, file, 1 << 20)
            os.replace(copy, keep)
        os.replace(temporary, path)
    except BaseException:
        for left in (temporary, copy):
            if left:
                left.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are on the disk before the first takes its name, in their order.

    Raises:
        OSError: when the disk is full, say; the files before are untouched and no temporary file is left.
    """
    temporary = {path: _temporary(path) for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _synced(temporary[path], path) as file:
                file.write(content)
        for path in contents:
            os.replace(temporary[path], path)
    except BaseException:
        for left in temporary.values():
            left.unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in contents}:
        _sync_folder(folder)


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is there under its name when it is whole; the one before is untouched until then.

    Raises:
        OSError: when the disk is full, say; no temporary file is left.
    """
    temporary = _temporary(path)
    try:
        with _synced(temporary, path) as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def require_writable(path: Path) -> None:
    """Prove that a file can be written, before the work whose result it is to hold; its folder is made.

    What is left of processes that died while they wrote this file is removed.

    Raises:
        ValueError: when it cannot.
    """
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error})") from None
    remove_leftovers(path.parent, path.name)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def _synced(temporary: Path, path: Path) -> Iterator:
    """A temporary file to write to; an error of writing names the file that it was to become."""
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(path)
        raise


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can: Windows and some network mounts cannot."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files of processes that died while they wrote into a folder: all, or those of one file."""
    for path in folder.glob(".*.tmp"):
        match = LEFT.fullmatch(path.name)
        if not match or name not in (None, match[1]):
            continue
        if int(match[2]) == os.getpid() or not _alive(int(match[2])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether a process may still be there; without psutil, which training installs, only Unix tells."""
    try:
        import psutil
    except ImportError:
        return os.name != "posix" or _signalled(process)
    return psutil.pid_exists(process)


def _signalled(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """A folder that no other process owns meanwhile, where the system has such locks; leftovers are removed.

    The lock ends with its process, however that ends, and processes it forked do not hold it.

    Raises:
        ValueError: when another process owns it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w")  # noqa: SIM115, closed below
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror or error})") from None
    with lock:
        if not _locked(lock):
            raise ValueError(f"another process is writing to {folder}; wait for it, or choose another folder")
        remove_leftovers(folder)
        yield


def _locked(file) -> bool:
    """Whether no other process holds the file's lock; this one holds it from then on."""
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):
        return False
    except (OSError, ImportError):
        pass  # a file system or a platform without locks
    return True


def _lock(file) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows; its locks are of bytes, and end with their process too

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def digest(lines: Iterable[str]) -> str:
    """Of some lines of text."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return total.hexdigest()[:16]
