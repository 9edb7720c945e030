"""Which pictures a folder or an archive holds, and the table of their classes: numbers go by names, never by order."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation", "heldout")  # of a set: no classes


def same(text: str) -> str:
    """A name in the one form (NFC) in which names are compared: file systems keep accents as one sign or as two."""
    return unicodedata.normalize("NFC", text)


def plain(name: str) -> str:
    """A path in a folder or an archive as all programs mean it: folders parted by "/", no "./", accents as one sign.

    Archives packed on Windows part folders by a backslash, and those of ``zip -r x.zip .`` may begin with "./".
    """
    return same("/".join(p for p in name.replace("\\", "/").split("/") if p not in ("", ".")))


def is_image(name: str) -> bool:
    """Whether a plain name is that of an image; hidden files and macOS's resource forks are none."""
    return name.lower().endswith(SUFFIXES) and not any(p.startswith((".", "__MACOSX")) for p in name.split("/"))


def files_below(folder: Path) -> Iterator[str]:
    """Paths of all files, relative to the folder. Links are followed, but not into a folder that they lie in."""
    yield from _walk(folder, "", frozenset())


def _walk(root: Path, below: str, above: frozenset) -> Iterator[str]:
    try:
        at = os.stat(root / below)
        entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except OSError as error:
        log.warning("%s cannot be read (%s)", root / below, error)
        return
    if (at.st_dev, at.st_ino) in above:
        return
    above |= {(at.st_dev, at.st_ino)}
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            yield from _walk(root, name, above)
        elif entry.is_file():
            yield name


def part_of(names: Sequence[str], within: str) -> str:
    """The beginning that the names below a folder have: "train/", or "set/train/" where all lies in a folder "set"."""
    within = plain(within)
    if not within:
        return ""
    if not any(name.startswith(f"{within}/") for name in names):
        tops = {name.partition("/")[0] for name in names}
        wrapped = f"{next(iter(tops), '')}/{within}/"
        if len(tops) == 1 and any(name.startswith(wrapped) for name in names):
            return wrapped
    return f"{within}/"


def folder_of(name: str, below: str = "") -> str:
    """The folder of an image, from ``below`` on; of one in ``below`` itself its last folder, "." for the root."""
    *parts, last = name[len(below) :].split("/")[:-1] or [below.rstrip("/").rpartition("/")[2] or "."]
    return "/".join([*(p for p in parts if p.lower() not in PARTS), last])


def class_table(folders: Iterable[str]) -> tuple[str, ...]:
    """Names of the classes of images in these folders (``folder_of``), in the order of their numbers.

    A class is called as its folder is. Where folders of one name lie in several places, by the whole path. Whole
    numbers are in the order of their values, other names in alphabetical order.
    """
    by_name: dict[str, set[str]] = {}
    for folder in folders:
        by_name.setdefault(folder.rpartition("/")[2], set()).add(folder)
    several = {name: sorted(places) for name, places in by_name.items() if len(places) > 1}
    for name, places in several.items():
        log.warning("folders called %s lie in several places; their classes are %s", name, ", ".join(places[:5]))
    table = [name for name in by_name if name not in several] + [p for places in several.values() for p in places]
    whole = all(name.isascii() and name.isdigit() for name in table)
    return tuple(sorted(table, key=lambda name: (int(name), name)) if whole else sorted(table))


def numbers(folders: Sequence[str], table: Sequence[str], where: object) -> list[int]:
    """The class of each image: that entry of the table that its folder ends in, the longest if several do.

    Raises:
        ValueError: for folders that are no classes of the table, naming them.
    """
    number = {same(name): i for i, name in enumerate(table)}
    found = {folder: _longest(folder, number) for folder in dict.fromkeys(folders)}
    unknown = sorted(folder for folder, i in found.items() if i is None)
    if unknown:
        raise ValueError(
            f"{where} holds images of {_few(unknown)}, which no class of the table is called: {_few(list(table))} are"
        )
    return [found[folder] for folder in folders]


def _longest(folder: str, number: dict[str, int]) -> int | None:
    parts = folder.split("/")
    return next((number[n] for i in range(len(parts)) if (n := "/".join(parts[i:])) in number), None)


def _few(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")


def table_of_all_parts(names: Sequence[str], within: str) -> tuple[str, ...]:
    """The classes of a part of a set, and of the folders beside it that hold some of the same: of train and test."""
    below = part_of(names, within)
    parent = below.rstrip("/").rpartition("/")[0]
    parent = f"{parent}/" if parent else ""
    parts: dict[str, set[str]] = {}
    for name in names:
        if name.startswith(parent) and "/" in name[len(parent) :]:
            part = parent + name[len(parent) :].partition("/")[0] + "/"
            parts.setdefault(part, set()).add(folder_of(name, part))
    own = parts.get(below, set())
    return class_table({folder for folders in parts.values() if folders & own for folder in folders} | own)
