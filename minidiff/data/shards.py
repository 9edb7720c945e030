"""Webdataset shards as a map-style data set: tar archives of ``KEY.jpg`` with ``KEY.cls``, ``KEY.txt`` or ``KEY.json``.

Shards that ``minidiff data pack``, webdataset's writers or img2dataset wrote are read in place, samples in any order;
one that takes a few shards at a time (``shard_sizes``) keeps the reading local.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..arguments import Count, checked
from .images import UNREADABLE, Images
from .listing import SUFFIXES, same
from .samples import Location, Samples
from .tar import ABSENT
from .tar import UNREADABLE as NO_CLASS

IMAGES = tuple(s[1:] for s in SUFFIXES)


def decode(suffix: str, content: bytes):
    """Content of a member by its suffix: cls int, txt str, json as it comes, npy tensor.

    Raises:
        ValueError: another suffix, or content that is not what the suffix says.
    """
    kind = suffix.rpartition(".")[2]
    if kind == "cls":
        return int(content)
    if kind == "txt":
        return content.decode()
    if kind == "json":
        return json.loads(content)
    if kind == "npy":
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
    raise ValueError(f"members {suffix!r} cannot be decoded; cls, txt, json and npy can")


@checked
class Shards(Images):
    """Images of webdataset shards; item i is (image (3, H, W) float32 in [-1, 1], *targets).

    The only target by default is the label, the whole number in the ``cls`` member; -1, the null label, where no
    sample has one. Other targets: "txt" (a caption, str), "json", "npy" (a tensor), by suffix. Samples that lack the
    image or a target, or where these cannot be decoded, are skipped and counted (``broken``).

    Args:
        where: a folder of ``*.tar``, one archive, a pattern, or a list of paths.
        size: side of the square every image is resized and cropped to; None leaves them as they are.
        mirror: a second half of the data set holds every image flipped left to right.
        targets: suffixes of what an item holds after the image: one, or several.
        beside: other shards whose members join these samples, as ``Samples`` does it.
        table: names that classes are numbered by, those of the training shards say; the index beside the shards says
            what their own numbers are called.
        read: what is made of a caption; samples whose caption it refuses with a ValueError are skipped too.

    Attributes:
        classes: tuple of class names: those of the table or in the index beside the shards, else "0", "1", ...; ()
            without labels. named: whether these are names, not only numbers.
        labels: (N,) long; -1 where there is none, or none that can be read.
        samples: the ``Samples``. shard_sizes: lengths of consecutive runs of items that lie in one file.

    Raises:
        ValueError: no shards, some missing or unfinished, no image in any sample, a target that no sample has or that
            cannot be decoded, samples of a class that is not in the table, or a bad size.
    """

    def __init__(
        self,
        where: Location,
        size: Count | None = None,
        mirror: bool = False,
        targets: str | Sequence[str] = "cls",
        beside: Sequence[Location] = (),
        table: Sequence[str] | None = None,
        read: Callable[[str], object] | None = None,
    ) -> None:
        self.samples = samples = Samples(where, beside)
        self._images = [s for s in samples.suffixes if s in IMAGES]
        if not self._images:
            held = ", ".join(samples.suffixes[:5]) + ", ..." * (len(samples.suffixes) > 5)
            dotted = any(suffix.rpartition(".")[2] in IMAGES for suffix in samples.suffixes)
            hint = "; what follows the first dot of a name says what a member is: keys have no dots" if dotted else ""
            raise ValueError(
                f"no images in the shards of {where}: they hold {held}; {', '.join(IMAGES)} are accepted{hint}"
            )
        self._read = read
        self._targets = (targets,) if isinstance(targets, str) else tuple(targets)
        for target in self._targets:
            if target not in samples.suffixes and target != "cls":
                raise ValueError(f"no {target!r} in the shards of {where}; they hold {', '.join(samples.suffixes)}")
            if target.rpartition(".")[2] not in ("cls", "txt", "json", "npy"):
                raise ValueError(f"target {target!r} cannot be decoded; cls, txt, json and npy can")
        _require_together(samples, self._images, self._targets, where)
        names = samples.index.get("classes")
        codes = samples.labels.copy()
        if names is not None:
            codes[codes >= len(names)] = NO_CLASS
            codes, names = _renumbered(codes, names, names if table is None else table, where)
        self._codes, self.named = codes, names is not None
        self.classes = tuple(str(i) for i in range(max(codes.max() + 1, 0))) if names is None else tuple(names)
        super().__init__(where, torch.from_numpy(codes.clip(ABSENT)), size, mirror)
        self.shard_sizes = samples.shard_sizes * (1 + mirror)

    def shard_of(self, index: int) -> int:
        """Number of the run of ``shard_sizes`` that item ``index`` lies in."""
        flipped, i = divmod(index, len(self.labels))
        return self.samples.shard_of(i) + flipped * len(self.samples.shard_sizes)

    def name(self, i: int) -> str:
        return self.samples.name(i)

    def read(self, i: int) -> bytes:
        suffix = next((s for s in self._images if self.samples.has(i, s)), self._images[0])
        return self.samples.read(i, suffix)

    def targets(self, i: int) -> tuple:
        return tuple(self._label(i) if t == "cls" else self._decoded(i, t) for t in self._targets)

    def _decoded(self, i: int, target: str):
        value = decode(target, self.samples.read(i, target))
        return self._read(value) if self._read and isinstance(value, str) else value

    def check_targets(self) -> dict[str, str]:
        """Read what goes with every image, without decoding it; what is wrong, by the names of those to be skipped."""
        wrong = {}
        for i in range(len(self.labels)):
            try:
                self.targets(i)
            except UNREADABLE as error:
                self._broken[i] = True
                wrong[self.name(i)] = str(error)
        return wrong

    def _label(self, i: int) -> int:
        code = int(self._codes[i])
        if code < 0 and "cls" in self.samples.suffixes:
            text = self.samples.read(i, "cls")  # raises where there is none
            raise ValueError(f"cls {text[:20]!r} is no class; 0 to {len(self.classes) - 1} are accepted")
        return code


def _require_together(samples: Samples, images: Sequence[str], targets: Sequence[str], where: Location) -> None:
    """Refuse shards whose images lie apart from what goes with them: a sample ends where the next key begins."""
    wanted = [target for target in targets if target in samples.suffixes]
    rows = range(len(samples))
    whole = lambda i: any(samples.has(i, s) for s in images) and all(samples.has(i, s) for s in wanted)
    if any(whole(i) for i in rows):
        return
    raise ValueError(
        f"no sample in the shards of {where} has an image and {' and '.join(wanted)}: the members of one key stand "
        f"side by side in a shard, and here {samples.name(0)} has {_members(samples, 0)} alone; write it anew with "
        "sorted names (tar --sort=name -cf SHARD.tar FOLDER)"
    )


def _members(samples: Samples, i: int) -> str:
    return ", ".join(suffix for suffix in samples.suffixes if samples.has(i, suffix))


def _renumbered(codes: np.ndarray, names: Sequence[str], table: Sequence[str], where: Location):
    """Labels that count names as labels that count the table."""
    number = {same(name): i for i, name in enumerate(table)}
    used = np.unique(codes[codes >= 0])
    unknown = [names[i] for i in used if same(names[i]) not in number]
    if unknown:
        raise ValueError(
            f"the shards of {where} hold classes that are not in the table: {', '.join(unknown[:10])}; "
            f"there are {', '.join(table[:10])}"
        )
    new = np.array([number.get(same(name), ABSENT) for name in names], codes.dtype)
    return np.where(codes >= 0, new[codes.clip(0)], codes), tuple(table)
