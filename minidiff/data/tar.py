"""Where the members of a webdataset shard lie: one pass over the headers of a tar archive, kept beside it.

A sample is a run of members whose names agree up to the first dot of the file name, the key; what follows that dot is
the suffix (webdataset's rule): ``000/0001.jpg`` and ``000/0001.cls`` are sample ``000/0001``.
"""

from __future__ import annotations

import logging
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..files import write_atomically

log = logging.getLogger(__name__)
FORMAT = "minidiff-tar-1"
MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
META = re.compile(r"__[^/]*__(?:$|/)")
MOST_SUFFIXES = 64
ABSENT, UNREADABLE = -1, -2  # labels


@dataclass(frozen=True)
class Table:
    """Samples of one shard.

    Attributes:
        keys: tuple of n keys.
        places: for each suffix (n, 2) int64, offset and size of the member in bytes; (-1, -1) where it is absent.
        labels: (n,) int64, what the ``cls`` member says; ``ABSENT`` or ``UNREADABLE``.
        damage: how the archive is damaged; "" if it is whole.
    """

    keys: tuple[str, ...]
    places: dict[str, np.ndarray]
    labels: np.ndarray
    damage: str = ""


def scan(path: Path) -> Table:
    """Read the headers of a tar archive. A damaged or truncated one gives the samples before the damage.

    Raises:
        ValueError: no tar archive, a compressed one, or names that do not follow webdataset's rule.
    """
    length = path.stat().st_size
    keys: list[str] = []
    rows: list[dict[str, tuple[int, int]]] = []
    labels: list[int] = []
    suffixes: set[str] = set()
    if length == 0:
        return _table(keys, rows, labels, suffixes, "is empty")
    try:
        archive = tarfile.TarFile(path)
    except tarfile.ReadError as error:
        raise ValueError(f"{path} is no tar archive, or a compressed one ({error})") from None
    with archive, open(path, "rb") as contents:
        damage = ""
        while True:
            try:
                member = archive.next()
            except (tarfile.TarError, OSError) as error:
                damage = f"ends early ({error})"
                break
            if member is None:
                break
            archive.members.clear()  # it would keep them all
            match = MEMBER.fullmatch(member.name)
            if not match or not member.isreg() or META.match(member.name):
                continue
            key, suffix = match[1], match[2].lower()
            if not keys or key != keys[-1]:
                keys.append(key)
                rows.append({})
                labels.append(ABSENT)
            suffixes.add(suffix)
            if len(suffixes) > MOST_SUFFIXES:
                raise ValueError(
                    f"{path} holds more than {MOST_SUFFIXES} kinds of member ({', '.join(sorted(suffixes)[:3])}, ...): "
                    "what follows the first dot of a file name is the kind, so keys are written without dots"
                )
            if member.offset_data + member.size <= length:
                rows[-1].setdefault(suffix, (member.offset_data, member.size))
                if suffix == "cls":
                    contents.seek(member.offset_data)
                    labels[-1] = _label(contents.read(min(member.size, 32)))
        contents.seek(archive.offset)
        end = contents.read(tarfile.BLOCKSIZE)
        if not damage and any(end):
            damage = f"is damaged from byte {archive.offset} on"
        elif not damage and len(end) < tarfile.BLOCKSIZE:
            damage = "lacks its end mark"
    return _table(keys, rows, labels, suffixes, damage)


def _label(text: bytes) -> int:
    return int(text) if re.fullmatch(rb"\s*\d{1,6}\s*", text) else UNREADABLE


def _table(keys: list[str], rows: list[dict], labels: list[int], suffixes: set[str], damage: str) -> Table:
    places = {s: np.array([row.get(s, (-1, -1)) for row in rows], np.int64).reshape(-1, 2) for s in sorted(suffixes)}
    return Table(tuple(keys), places, np.array(labels, np.int64), damage)


def read_table(path: Path) -> Table:
    """``scan``, or what an earlier scan left in ``.NAME.index`` beside the shard, which is written where that is
    possible and read again while the shard's size and times stay the same: that of its contents, which programs may set
    back, and that of its entry, which they may not."""
    stat = path.stat()
    stamp = f"{FORMAT} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    kept = path.with_name(f".{path.name}.index")
    try:
        with safe_open(kept, "numpy") as file:
            meta = file.metadata()
            if meta["stamp"] == stamp:
                keys = file.get_tensor("keys").tobytes().decode("utf-8", "surrogateescape")
                places = {name[6:]: file.get_tensor(name) for name in sorted(file.keys()) if name.startswith("place.")}
                return Table(tuple(keys.split("\0")) if keys else (), places, file.get_tensor("labels"), meta["damage"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        pass  # never scanned, or unreadable: scan
    table = scan(path)
    arrays = {f"place.{suffix}": place for suffix, place in table.places.items()}
    keys = "\0".join(table.keys).encode("utf-8", "surrogateescape")
    arrays |= {"labels": table.labels, "keys": np.frombuffer(bytearray(keys), np.uint8)}
    try:
        write_atomically(kept, save(arrays, {"stamp": stamp, "damage": table.damage}))
    except OSError as error:
        log.info("the index of %s is not kept: %s", path, error)
    return table
