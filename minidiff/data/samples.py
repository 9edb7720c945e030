"""Samples of webdataset shards by number: any member of any sample, as bytes."""

from __future__ import annotations

import glob
import io
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from ..arguments import Natural, checked
from ..files import sha256
from .tar import read_table

log = logging.getLogger(__name__)
INDEX, FORMAT = "index.json", "minidiff-shards-1"
OPEN_FILES = 64
Location = str | os.PathLike | Sequence[str | os.PathLike]


def find_shards(where: Location) -> tuple[list[Path], dict]:
    """Paths of the shards, in order, and the index that ``minidiff data pack`` or ``embed`` left beside them, or {}.

    Args:
        where: a folder of ``*.tar``, one archive, a pattern ("train/*.tar", "train/{000000..000127}.tar"), or a list.

    Raises:
        ValueError: no shards there, some missing, or a pack that was not finished.
    """
    several = isinstance(where, (list, tuple))
    where = where if several else os.path.expanduser(where)
    if several:
        paths = [Path(p) for p in where]
    elif Path(where).is_dir():
        paths = sorted(Path(where).glob("*.tar"))
        listed = [Path(where) / shard["name"] for shard in _index(Path(where)).get("shards", [])]
        paths = sorted({*paths, *listed})
    elif "{" in os.fspath(where):
        from braceexpand import braceexpand  # comes with webdataset

        paths = [Path(p) for p in braceexpand(os.fspath(where))]
    elif glob.has_magic(os.fspath(where)):
        paths = [Path(p) for p in sorted(glob.glob(os.fspath(where)))]
    else:
        paths = [Path(where)]
    missing = [str(p) for p in paths if not p.is_file()]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} shards do not exist: {', '.join(missing[:3])}")
    if not paths:
        below = [] if several else sorted({p.parent.name for p in Path(where).glob("*/*.tar")})
        hint = f"; there are some in its folders {', '.join(below[:5])}" if below else ""
        raise ValueError(f"no shards in {where}; a folder of .tar files, one of them, or a pattern is accepted{hint}")
    index = _index(paths[0].parent) if len({p.parent for p in paths}) == 1 else {}
    if index and not index["complete"]:
        raise ValueError(f"the shards in {paths[0].parent} are not finished: run the command that writes them again")
    return paths, index


def _index(folder: Path) -> dict:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) and index.get("format") == FORMAT else {}


@checked
class Samples:
    """The samples of webdataset shards and their members as bytes, by number.

    Needs no index: the headers of each archive are read once, and kept beside it (``minidiff.data.tar``). Damaged
    archives give the samples before the damage. Safe in forked, spawned and threaded readers.

    Args:
        where: as ``find_shards`` takes it.
        beside: further such places with shards of the same names, whose members join the samples of the same key:
            embeddings that ``minidiff data embed`` made of these samples.

    Attributes:
        files: tuple of paths. shard_sizes: samples of each. suffixes: what members there are, the most frequent first.
        labels: (N,) int64 numpy, from ``cls`` members. damage: name of a damaged shard -> what is wrong.
        index: the index beside the shards, or {}.

    Raises:
        ValueError: no shards, or no samples in them, or two places that hold the same kind of member.
    """

    def __init__(self, where: Location, beside: Sequence[Location] = ()) -> None:
        paths, self.index = find_shards(where)
        self.files, tables = tuple(paths), [read_table(p) for p in paths]
        self.shard_sizes = tuple(len(t.keys) for t in tables)
        self.damage = {p.name: t.damage for p, t in zip(paths, tables, strict=True) if t.damage}
        for name, damage in self.damage.items():
            log.warning("shard %s %s; the samples before that are used", name, damage)
        if not sum(self.shard_sizes):
            raise ValueError(f"the {len(paths)} shards of {where} hold no samples")
        self._ends = list(accumulate(self.shard_sizes))
        self.labels = np.concatenate([t.labels for t in tables])
        keys = [k.encode("utf-8", "surrogateescape") for t in tables for k in t.keys]
        self._keys, self._key_ends = b"".join(keys), np.cumsum([len(k) for k in keys])  # no objects to count, to fork
        self._columns = {s: (self.files, place) for s, place in _columns(tables).items()}
        for place in beside:
            joined = self._joined(place, tables)
            both = sorted(joined.keys() & self._columns.keys())
            if both:
                raise ValueError(f"{where} and {place} both hold members {', '.join(both)}")
            self._columns |= joined
        self.suffixes = tuple(sorted(self._columns, key=self.count, reverse=True))
        self._open: dict[Path, io.FileIO] = {}

    def _joined(self, where: Location, ours: list) -> dict[str, tuple[tuple[Path, ...], np.ndarray]]:
        """Columns of members that lie beside, in the order of our keys."""
        found = {p.name: p for p in find_shards(where)[0]}
        missing = [p.name for p in self.files if p.name not in found]
        if missing:
            raise ValueError(f"{where} lacks {len(missing)} of {len(self.files)} shards: {', '.join(missing[:3])}")
        files = tuple(found[p.name] for p in self.files)
        theirs = [read_table(p) for p in files]
        rows = []
        for a, b in zip(ours, theirs, strict=True):
            number = {key: i for i, key in enumerate(b.keys)}
            rows.append(np.array([number.get(key, -1) for key in a.keys], np.int64))
        out = {}
        for suffix in sorted({s for t in theirs for s in t.places}):
            parts = []
            for row, table in zip(rows, theirs, strict=True):
                place = table.places.get(suffix, np.empty((0, 2), np.int64))
                parts.append(np.concatenate([place, [[-1, -1]]])[np.where(len(place) > 0, row, -1)])
            out[suffix] = files, np.concatenate(parts)
        return out

    def __len__(self) -> int:
        return self._ends[-1]

    def shard_of(self, i: Natural) -> int:
        """Number of the shard that sample i lies in."""
        return bisect_right(self._ends, i)

    def key(self, i: Natural) -> str:
        """Key of sample i."""
        start = int(self._key_ends[i - 1]) if i else 0
        return self._keys[start : int(self._key_ends[i])].decode("utf-8", "surrogateescape")

    def name(self, i: Natural) -> str:
        """Shard and key of sample i."""
        return f"{self.files[self.shard_of(i)].name}/{self.key(i)}"

    def count(self, suffix: str) -> int:
        """How many samples have such a member."""
        return int((self._columns[suffix][1][:, 1] >= 0).sum())

    def has(self, i: Natural, suffix: str) -> bool:
        """Whether sample i has such a member."""
        return suffix in self._columns and bool(self._columns[suffix][1][i, 1] >= 0)

    def read(self, i: Natural, suffix: str) -> bytes:
        """A member of sample i.

        Raises:
            OSError: it has none, or the shard cannot be read.
        """
        if not self.has(i, suffix):
            raise OSError(f"sample {self.name(i)} has no {suffix!r} member")
        files, places = self._columns[suffix]
        offset, size = places[i].tolist()
        content = _read_at(self._file(files[self.shard_of(i)]), size, offset)
        if len(content) < size:
            raise OSError(f"{self.name(i)}.{suffix} ends after {len(content)} of {size} bytes")
        return content

    def _file(self, path: Path) -> io.FileIO:
        file = self._open.get(path)
        if file is None:
            if len(self._open) >= OPEN_FILES:
                self._open = {}  # each is closed when no thread reads it any more
            file = self._open[path] = io.FileIO(path)
        return file

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}


def _read_at(file: io.FileIO, size: int, offset: int) -> bytes:
    """Bytes of a file that threads and forked processes share: their file position is left alone."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    with open(file.name, "rb") as own:  # Windows
        own.seek(offset)
        return own.read(size)


def changed(samples: Samples) -> list[str]:
    """Names of the shards whose contents no longer have the checksum in the index."""
    known = {shard["name"]: shard["sha256"] for shard in samples.index.get("shards", [])}
    return [f.name for f in samples.files if f.name in known and sha256(f) != known[f.name]]


def _columns(tables: list) -> dict[str, np.ndarray]:
    """Suffix -> (N, 2) places over all shards."""
    absent = lambda table: np.full((len(table.keys), 2), -1)
    suffixes = sorted({s for t in tables for s in t.places})
    return {s: np.concatenate([t.places[s] if s in t.places else absent(t) for t in tables]) for s in suffixes}
