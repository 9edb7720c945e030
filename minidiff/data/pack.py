"""Pack images into webdataset shards: ``KEY.jpg`` or ``KEY.png`` with ``KEY.cls`` and, given captions, ``KEY.txt``."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..arguments import Count, Natural, checked, floats
from ..files import digest
from ..random import sample_generators
from .digests import fingerprint
from .images import UNREADABLE, Images
from .listing import plain
from .sets import class_names
from .workers import loaded
from .writer import ShardWriter

PER_SHARD = 10_000
LONGEST = 1 << 24  # characters of a caption in a table
KEPT = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}  # what every reader of webdataset decodes: packed as they are


@checked
def pack(
    source: Dataset,
    out: str | os.PathLike,
    per_shard: Count = PER_SHARD,
    captions: Mapping[str, str] | None = None,
    quality: int | None = None,
    seed: int | None = 0,
    workers: Natural = 0,
    progress: bool = False,
) -> dict:
    """Write the images of a data set to webdataset shards ``000000.tar``, ...; the same bytes on every run.

    JPEG and PNG files of folders and archives that are not resized go in as they are; others as PNG, or as JPEG where
    a quality is given. The key of a sample is its number in the source. Images that cannot be decoded, and images
    without a caption where there are captions, are skipped and named in the index. Memory does not grow with the set.

    Args:
        source: ``ImageFolder``, or any map-style data set whose items are (image as ``to_tensor`` makes it, label).
        out: folder for the shards and ``index.json``. A run that was interrupted is taken up where it stood.
        per_shard: images of the source per shard.
        captions: name of an image -> caption, for an ``ImageFolder``.
        quality: 1 to 100: encode every image as JPEG.
        seed: the images are shuffled once, so that training can read whole shards; None keeps their order.
        workers: processes that decode and encode.
        progress: show a progress bar.

    Returns:
        The index: samples, skipped, classes, plan, shards.

    Raises:
        ValueError: ``out`` holds other shards, nothing can be decoded, or an argument out of range.
    """
    from tqdm import tqdm

    captions = _checked(source, per_shard, captions, quality)
    count, names = len(source), class_names(source)
    plan = {"source": fingerprint(source), "images": count, "size": getattr(source, "size", None)}
    plan |= {"per_shard": per_shard, "quality": quality, "seed": seed}
    plan["classes"] = digest(names)
    plan["captions"] = None if captions is None else digest(f"{k}\0{v}" for k, v in sorted(captions.items()))
    writer = ShardWriter(out, plan)
    order = torch.arange(count)
    if seed is not None:
        order = torch.randperm(count, generator=sample_generators(seed, ["pack"])[0])
    encoded = _Encoded(source, captions, quality)
    bar = tqdm(total=count, desc="pack", unit="image", disable=not progress, smoothing=0.05)
    for k, run in enumerate(order.split(per_shard)):
        name = f"{k:06d}.tar"
        if name in writer.done:
            bar.update(len(run))
            continue
        with writer.shard(name) as (add, skipped):
            for i, members in in_order(encoded, run.tolist(), workers):
                if members is None:
                    skipped.append(encoded.name(i))
                    bar.set_postfix_str(f"{encoded.name(i)} skipped")
                else:
                    add(f"{i:09d}", members)
                bar.update()
    bar.close()
    return writer.finish(**({"classes": list(names)} if names else {}))


def _checked(source, per_shard, captions, quality) -> dict[str, str] | None:
    """The captions by the names that the source has for its images, when what is given fits together."""
    if getattr(source, "mirror", False):
        raise ValueError("a mirrored data set given; pack it as it is and mirror when reading")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality = {quality!r} given; None or 1 to 100 is accepted")
    if captions is None:
        return None
    if not isinstance(source, Images):
        raise ValueError("captions go by the names of images; the images of a folder or an archive are accepted")
    captions = {plain(name): text for name, text in captions.items()}
    _require_known(captions, source)
    return captions


def _require_known(captions: Mapping[str, str], source: Images) -> None:
    """Refuse captions none of whose names is that of an image: before anything is written."""
    names = [source.name(i) for i in range(len(source.labels))]
    if captions.keys().isdisjoint(names):
        told = f"the captions are of {next(iter(captions))!r}, ..." if captions else "there are no captions"
        raise ValueError(f"no caption goes with an image: {told}; the images are called {names[0]!r}, ...")


@checked
def in_order(items: Dataset, numbers: Sequence[Natural], workers: Natural) -> Iterator[tuple[int, object]]:
    """(i, items[i]) for the numbers, in their order, read ahead by as many processes as there are workers."""
    loader = DataLoader(items, sampler=numbers, batch_size=32, collate_fn=list, num_workers=workers)
    numbers = iter(numbers)
    for batch in loaded(loader):
        for item in batch:
            yield next(numbers), item


class _Encoded(Dataset):
    """Item i: the members of sample i by suffix, or None where it is to be skipped."""

    def __init__(self, source: Dataset, captions: Mapping[str, str] | None, quality: int | None) -> None:
        self.source, self.captions, self.quality = source, captions, quality

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i) if isinstance(self.source, Images) else str(i)

    def __getitem__(self, i: int) -> dict[str, bytes] | None:
        members = {}
        if self.captions is not None:
            caption = self.captions.get(self.name(i))
            if caption is None:
                return None
            members["txt"] = caption.encode()
        try:
            suffix, content, label = self._image(i)
        except UNREADABLE:
            return None
        return members | {suffix: content, "cls": str(label).encode()}

    def _image(self, i: int) -> tuple[str, bytes, int]:
        source = self.source
        if isinstance(source, Images):
            kept = KEPT.get(Path(source.name(i)).suffix.lower())
            if kept and source.size is None and self.quality is None:
                content = source.read(i)
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
                return kept, content, int(source.labels[i])
            item = source.load(i)
            if item is None:
                raise OSError("cannot be decoded")
            label = source.labels[i]  # an item of captioned ones holds the caption
        else:
            item = source[i]
            label = item[1]
        image, buffer = picture(item[0]), io.BytesIO()
        if self.quality is None:
            image.save(buffer, "PNG")
        else:
            image.save(buffer, "JPEG", quality=self.quality)
        return "png" if self.quality is None else "jpg", buffer.getvalue(), int(label)


@checked
def picture(image: floats("C H W")) -> Image.Image:
    """The 8-bit picture that ``to_tensor`` turns into this tensor, (1 or 3, H, W) in [-1, 1]."""
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def read_captions(path: str | os.PathLike) -> dict[str, str]:
    """Captions by image name, from a CSV or JSON-lines file with the columns ``file_name`` and ``text``.

    This is the form of ``metadata.csv`` and ``metadata.jsonl`` beside Hugging Face's image folders.

    Raises:
        ValueError: another suffix, a missing column, more cells than columns, a second caption of an image, a line
            that is no JSON, with its number, a quotation mark that is not closed, or text that is not UTF-8.
    """
    path, out = Path(path), {}
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"captions in {path}; a .csv or .jsonl file with file_name and text is accepted")
    csv.field_size_limit(LONGEST)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True) if path.suffix == ".csv" else map(_json, filter(str.strip, file))
        try:
            for number, row in enumerate(rows, 1):
                if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("file_name", "text")):
                    there = f"; there are {', '.join(map(str, row))}" if isinstance(row, dict) else ""
                    raise ValueError(f"{path}, row {number}: a file_name and a text are expected{there}")
                if None in row:
                    raise ValueError(f"{path}, row {number}: more cells than columns; a text with a comma is quoted")
                if out.setdefault(row["file_name"], row["text"]) != row["text"]:
                    raise ValueError(f"{path}, row {number}: another caption of {row['file_name']}; one is accepted")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, after row {len(out)}: {error}; save it as UTF-8") from None
    return out


def _json(line: str):
    try:
        return json.loads(line)
    except ValueError:
        return None
