"""Write webdataset shards so that a run can be interrupted at any moment and taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..files import remove_leftovers, write_atomically, written_atomically
from .samples import FORMAT, INDEX
from .tar import read_table


class ShardWriter:
    """Shards of one job in a folder, each whole or not there, and an index that says how far the job is.

    A shard is written under a temporary name and renamed when it is on the disk. A job that was interrupted goes on
    after its last whole shard when it is started again with the same plan.

    Args:
        out: folder; made if need be.
        plan: everything that the bytes of the shards depend on, as JSON.

    Attributes:
        done: name of a finished shard -> its record: samples, bytes, sha256, skipped (names).

    Raises:
        ValueError: the folder holds shards of another plan, or shards that this program did not write; or webdataset
            is not installed.
    """

    def __init__(self, out: str | os.PathLike, plan: dict) -> None:
        try:
            from webdataset import TarWriter
        except ImportError as error:
            raise ValueError("shards are written with webdataset: pip install 'minidiff[train]'") from error
        self._writer = TarWriter
        self.out, self.plan = Path(out), json.loads(json.dumps(plan))
        path = self.out / INDEX
        index: dict = {}
        if path.exists():
            with contextlib.suppress(ValueError):
                index = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(index, dict) or index.get("format") != FORMAT:
                raise ValueError(f"{path} was not written here; choose another folder")
            theirs, ours = index["plan"], self.plan
            other = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
            if other:
                what = ", ".join(other)
                raise ValueError(f"{self.out} holds shards of another job (different: {what}); choose another folder")
        elif any(self.out.glob("*.tar")):
            raise ValueError(f"{self.out} holds shards that were not written here; choose another folder")
        self.done: dict[str, dict] = {}
        for record in index.get("shards", []):
            file = self.out / record["name"]
            if file.is_file() and file.stat().st_size == record["bytes"]:
                self.done[record["name"]] = record
        if self.out.is_dir():
            remove_leftovers(self.out)  # of jobs that were killed
        if not index:
            self._write_index(False)  # before any shard: its folder is known as this job's from the start

    @contextlib.contextmanager
    def shard(self, name: str) -> Iterator[tuple[Callable[[str, dict[str, bytes]], None], list[str]]]:
        """Write one shard: gives ``add(key, members)`` and the list that names of skipped samples go to."""
        skipped, samples = [], 0

        def add(key: str, members: dict[str, bytes]) -> None:
            nonlocal samples
            tar.write({"__key__": key, **members})
            samples += 1

        with written_atomically(self.out / name) as file:
            hashed = _Hashed(file)
            with self._writer(hashed, encoder=False, mtime=0) as tar:
                yield add, skipped
        size = (self.out / name).stat().st_size
        record = {"name": name, "samples": samples, "bytes": size, "sha256": hashed.digest.hexdigest()}
        self.done[name] = record | {"skipped": skipped}
        read_table(self.out / name)  # leaves the offsets beside the shard
        self._write_index(False)

    def finish(self, **facts) -> dict:
        """Mark the job as done, with further facts about the set; returns the index.

        Raises:
            ValueError: no shard holds any sample.
        """
        if not any(record["samples"] for record in self.done.values()):
            raise ValueError(f"nothing to write to {self.out}: all samples were skipped")
        return self._write_index(True, **facts)

    def _write_index(self, complete: bool, **facts) -> dict:
        shards = [self.done[name] for name in sorted(self.done)]
        index = {"format": FORMAT, "complete": complete, "samples": sum(s["samples"] for s in shards)}
        index |= {"skipped": sum(len(s["skipped"]) for s in shards), **facts, "plan": self.plan, "shards": shards}
        write_atomically(self.out / INDEX, (json.dumps(index, indent=1) + "\n").encode())
        return index


class _Hashed:
    """A file to write to, and the sha256 of what was written."""

    def __init__(self, file) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)
