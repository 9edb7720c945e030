"""Pictures from any folder or zip archive, and torchvision's data sets by name, as float32 tensors in [-1, 1].

A file that cannot be decoded is skipped, its name is logged once and listed in ``broken``. In training its place is
taken by the next good one; who measures asks for it with ``own``, and leaves it out. Archives are read in place,
without extraction, and every worker process opens its own handle.
"""

from __future__ import annotations

import inspect
import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ..arguments import Count, checked, integers
from .listing import (
    SUFFIXES,
    class_table,
    files_below,
    folder_of,
    is_image,
    numbers,
    part_of,
    plain,
    table_of_all_parts,
)
from .workers import shared

log = logging.getLogger(__name__)
UNREADABLE = (  # what Pillow and zipfile raise for files that are not what their names say
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of any mode upright and with 8 bits a channel, 16-bit grey scaled to them.

    Raises:
        ValueError: a mode with no fixed white level (32-bit float).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert() would clip instead of scale
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("an image of 32-bit floats given; integer images are accepted")
    return image


@checked
def to_tensor(image: Image.Image, size: Count | None = None) -> Tensor:
    """An image of any mode as (3, H, W) float32 in [-1, 1], red first.

    Camera orientation is applied, transparency laid over white, 16-bit grey scaled to 8 bits. With ``size``, the
    shorter side is resized to it (antialiased bicubic) and the centre square cut out.

    Raises:
        ValueError: a mode with no fixed white level (32-bit float).
    """
    image = eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).div_(127.5).sub_(1).contiguous()


@checked
class Images(Dataset):
    """Images decoded on demand; item i is (image (3, H, W) float32 in [-1, 1], label int).

    What folders, archives and shards have in common: broken images are skipped, counted and named. A subclass says
    how to ``read`` image i, what its ``name`` is and which ``targets`` go with it.

    Args:
        path: where they lie, for messages.
        labels: (N,) long.
        size: side of the square every image is resized and cropped to; None leaves them as they are.
        mirror: a second half of the data set holds every image flipped left to right.

    Raises:
        ValueError: a size that is no whole number >= 1.
    """

    def __init__(self, path: Any, labels: integers("N"), size: Count | None, mirror: bool) -> None:
        self.path, self.labels, self.size, self.mirror = path, labels, size, mirror
        self._broken = shared(torch.zeros(len(labels), dtype=torch.bool))  # workers report here

    def read(self, i: int) -> bytes:
        """The file of image i as it is stored."""
        raise NotImplementedError

    def name(self, i: int) -> str:
        """Name of image i."""
        raise NotImplementedError

    def targets(self, i: int) -> tuple:
        """What an item holds after the image."""
        return (int(self.labels[i]),)

    @property
    def broken(self) -> list[str]:
        """Names of the images that could not be decoded so far, in any process."""
        return [self.name(i) for i in self._broken.nonzero()[:, 0].tolist()]

    def check(self) -> list[str]:
        """Decode every image once; returns the names of the broken ones."""
        for i in range(len(self.labels)):
            self.load(i)
        return self.broken

    def __len__(self) -> int:
        return len(self.labels) * (1 + self.mirror)

    def __getitem__(self, index: int) -> tuple:
        n = len(self.labels)
        flipped, first = self._place(index)
        for i in range(first, first + n):
            item = self.own(flipped * n + i % n)
            if item is not None:
                return item
        raise ValueError(f"none of the {n} images in {self.path} can be decoded")

    def _place(self, index: int) -> tuple[int, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return divmod(index % len(self), len(self.labels))

    def own(self, index: int) -> tuple | None:
        """Item ``index`` itself, or None where it cannot be decoded: nothing stands in for it."""
        flipped, i = self._place(index)
        item = self.load(i)
        return (item[0].flip(2), *item[1:]) if flipped and item is not None else item

    def load(self, i: int) -> tuple | None:
        """Image i with its targets, or None, with a note in the log the first time, if it cannot be decoded."""
        if self._broken[i]:
            return None
        try:
            with Image.open(io.BytesIO(self.read(i))) as image:
                return (to_tensor(image, self.size), *self.targets(i))
        except UNREADABLE as error:
            self._broken[i] = True
            count = int(self._broken.sum())
            log.warning("skipped broken image %s in %s (%s); %d so far", self.name(i), self.path, error, count)
            return None


@checked
class ImageFolder(Images):
    """Labelled images of a folder or a zip archive; item i is (image (3, H, W) float32 in [-1, 1], label int).

    The class of an image is called as the folder it lies in is ("." for the root), and numbered by a table of names:
    that of another part of the set, or its own, see ``listing.class_table``. Images are sorted by path. Hidden files
    and other suffixes are no images.

    Args:
        path: a folder, or a zip archive.
        size: side of the square every image is resized and cropped to; None leaves them as they are.
        within: only images below this folder of it, e.g. "train".
        mirror: a second half of the data set holds every image flipped left to right.
        classes: the names that classes are numbered by, of the training images say; "all" for those of all parts of
            the set that ``within`` is one of.

    Attributes:
        classes: tuple of class names. names: tuple of paths. labels: (N,) long, into ``classes``.

    Raises:
        ValueError: path missing, neither folder nor zip, no images in it, images of a class that is not in the table,
            or a size that is no whole number >= 1.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: Count | None = None,
        within: str = "",
        mirror: bool = False,
        classes: Sequence[str] | str | None = None,
    ) -> None:
        self.path, self._archive = Path(path).expanduser(), None
        if not self.path.exists():
            raise ValueError(f"{self.path} does not exist; a folder of images or a zip archive is accepted")
        if not self.path.is_dir() and not zipfile.is_zipfile(self.path):
            raise ValueError(f"{self.path} is neither a folder nor a zip archive")
        every = self._listed()
        below = part_of([name for name, _ in every], within)
        inside = [pair for pair in every if pair[0].startswith(below)]
        if not inside:
            raise ValueError(_no_images(self.path, within, [name for name, _ in every]))
        self.names = tuple(name for name, _ in inside)
        self._stored = {i: stored for i, (name, stored) in enumerate(inside) if name != stored}
        folders = [folder_of(name, below) for name in self.names]
        if classes == "all":
            classes = table_of_all_parts([name for name, _ in every], within) if within else None
        self.classes = class_table(folders) if classes is None else tuple(classes)
        where = f"{self.path}, {below.rstrip('/')}," if below else self.path
        super().__init__(self.path, torch.tensor(numbers(folders, self.classes, where)), size, mirror)

    def name(self, i: int) -> str:
        return self.names[i]

    def read(self, i: int) -> bytes:
        name = self._stored.get(i, self.names[i])
        return (self.path / name).read_bytes() if self.path.is_dir() else self._zip().read(name)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_archive": None}

    def _listed(self) -> list[tuple[str, str]]:
        """Plain names of all images, sorted, each with the name as it is stored."""
        if self.path.is_dir():  # a backslash is part of a name there
            pairs = [("\\".join(map(plain, name.split("\\"))), name) for name in files_below(self.path)]
        else:
            pairs = [(plain(name), name) for name in self._zip().namelist()]
        return sorted(pair for pair in pairs if is_image(pair[0]))

    def _zip(self) -> zipfile.ZipFile:
        """This process's own handle: a forked one would share its file position with the parent."""
        if self._archive is None or self._archive[0] != os.getpid():
            self._archive = (os.getpid(), zipfile.ZipFile(self.path))
        return self._archive[1]


def _no_images(path: Path, within: str, names: list[str]) -> str:
    where = f"{path}, below {within!r}" if within else str(path)
    folders = sorted({name.partition("/")[0] for name in names if "/" in name})
    hint = f"; there are {len(names)} elsewhere in it" if names else ""
    hint += f", in {', '.join(folders[:5])}" if folders else ""
    hint += '; data.train="" takes all' if names else ""
    return f"no images in {where}; files ending in {' '.join(SUFFIXES)} are accepted{hint}"


@checked
def torchvision_set(
    name: str, root: str | os.PathLike, split: str = "train", size: Count | None = None, download: bool = False
) -> Dataset:
    """A labelled data set of torchvision, "CIFAR10" say, whose items are (image as ``to_tensor`` makes it, label).

    Args:
        split: "train" or "test", or whatever the data set calls its parts.
        download: fetch it when it is not below ``root``; never done unasked.

    Raises:
        ValueError: unknown name (the nearest is suggested), unknown split, bad size, or the data are not there.
    """
    from torchvision import datasets

    known = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    if name.lower() not in known:
        near = [known[n] for n in get_close_matches(name.lower(), known, 3)]
        raise ValueError(f"torchvision has no data set {name!r}; nearest names: {', '.join(near) or 'none'}")
    kind, size = getattr(datasets, known[name.lower()]), size
    accepted = inspect.signature(kind).parameters
    options: dict = {"root": os.fspath(root), "transform": partial(to_tensor, size=size)}
    if "train" in accepted:
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} given; {known[name.lower()]} has train and test")
        options["train"] = split == "train"
    elif "split" in accepted:
        options["split"] = split
    if "download" in accepted:
        options["download"] = download
    options = {key: value for key, value in options.items() if key in accepted}
    try:
        return kind(**options)
    except (RuntimeError, FileNotFoundError) as error:
        hint = "" if download else "; download=True fetches it"
        raise ValueError(f"{known[name.lower()]} cannot be read from {root}: {error}{hint}") from error
