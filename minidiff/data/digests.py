"""What a data set holds, in a few letters: whether it is still the one that was begun with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch.utils.data import Dataset

from ..files import digest
from .images import UNREADABLE, Images
from .sets import Columns, class_names, labels_of

FILES = 64  # that are read to see whether they changed


def fingerprint(source: Dataset) -> str:
    """A digest of what the data set holds, as far as its names and labels tell, or it says itself."""
    if hasattr(source, "fingerprint"):
        return source.fingerprint
    if isinstance(source, Images):
        labels = source.labels.tolist()
        return digest(f"{source.name(i)}\0{label}" for i, label in enumerate(labels))
    return f"{type(source).__name__} of {len(source)}"


def of_set(found: Dataset) -> str:
    """A digest of what training sees: labels, captions and the names of classes; names and some of the files on disk.

    Of pictures in memory only how many there are and their shape: what is drawn anew may differ in a last digit.
    """
    if isinstance(found, Columns):
        return digest(_column(name, tensor) for name, tensor in sorted(found.columns.items()))
    images = getattr(found, "found", found)
    said = "\0".join(class_names(found))
    if isinstance(images, Images):
        return digest([said, fingerprint(images), *_contents(images)])
    labels = labels_of(found)
    return digest([said, fingerprint(images), "" if labels is None else str(labels.tolist())])


def _column(name: str, tensor) -> str:
    whole = "" if tensor.is_floating_point() else hashlib.sha256(tensor.contiguous().numpy()).hexdigest()
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {whole}"


def _contents(images: Images) -> Iterable[str]:
    n = len(images.labels)
    for i in sorted({k * n // FILES for k in range(FILES)}):
        try:
            yield hashlib.sha256(images.read(i)).hexdigest()
        except UNREADABLE:
            yield "unreadable"
