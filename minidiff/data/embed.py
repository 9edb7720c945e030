"""What a frozen encoder says of every sample, computed once and stored in shards of ``KEY.npy``."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .images import UNREADABLE, Images, checked
from .pack import PER_SHARD, in_order
from .samples import Location, Samples
from .shards import Shards, decode
from .writer import ShardWriter, fingerprint


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder.

    Attributes:
        name: names it in the index of what it made.
        size: side in pixels of the images it takes; None if any will do.
        function: images (B, 3, size, size) in [-1, 1], or a list of B texts, -> (B, ...).
        reads: "image", or the suffix of the member that holds the text, "txt".
    """

    name: str
    size: int | None
    function: Callable[[Tensor | list[str]], Tensor]
    reads: str = "image"


def load_encoder(name: str, device: str = "cpu", text: bool = False) -> Encoder:
    """An encoder by name.

    Args:
        name: a committed classifier ("cifar16-classifier-clean"), whose pooled features are taken; or a model of
            open_clip, named as ``models.open_clip.load_open_clip`` has it.
        device: where it computes.
        text: the text half of a model of open_clip.

    Raises:
        ValueError: an unknown name, a checkpoint without features, or weights that are not there.
    """
    from ..systems.zoo import checkpoints

    if name in checkpoints():
        return _committed(name, device, text)
    if ":" in name:
        return _open_clip(name, device, text)
    from ..words import nearest

    raise ValueError(
        f"no encoder {name!r}: {nearest(name, checkpoints())}; a model of open_clip is written MODEL:WEIGHTS"
    )


def _committed(name: str, device: str, text: bool) -> Encoder:
    from ..systems.zoo import load

    system = load(name, device)
    if text or not hasattr(system, "features"):
        raise ValueError(f"{name} has no {'text' if text else 'features'}; a classifier's features of images are taken")
    channels, size, _ = system.shape

    def features(images: Tensor) -> Tensor:
        images = images.to(device)
        return system.features(images if channels == 3 else images.mean(1, keepdim=True))

    return Encoder(name, size, features)


def _open_clip(name: str, device: str, text: bool) -> Encoder:
    from ..models.open_clip import image_size, load_open_clip, normalised

    model, tokenizer = load_open_clip(name, device)
    if text:
        return Encoder(f"{name} text", None, lambda texts: model.encode_text(tokenizer(texts).to(device)), "txt")
    return Encoder(name, image_size(model), lambda images: model.encode_image(normalised(model, images.to(device))))


def embed(
    source: Dataset,
    encoder: Encoder,
    out: str | os.PathLike,
    batch: int = 64,
    per_shard: int = PER_SHARD,
    suffix: str = "npy",
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """Write the embedding of every sample to shards, float16, in the order of the source and under its keys.

    The embeddings of ``Shards`` lie in shards of the same names, so that ``Shards(..., beside=[out])`` joins them;
    those of another data set in shards of ``per_shard`` samples, under the number of the sample. Samples that cannot be
    decoded are skipped and named in the index. A run that was interrupted goes on after its last whole shard.

    Args:
        source: ``Shards``, ``ImageFolder``, or any map-style data set whose items begin with an image.
        encoder: from ``load_encoder``, or one's own.
        out: folder for the shards and ``index.json``.
        batch: samples per call of the encoder.
        per_shard: samples per shard, where the source has no shards.
        suffix: what the members are called, "clip.npy" say, where several embeddings join the same samples.
        workers: processes that decode.
        progress: show a progress bar.

    Returns:
        The index: samples, skipped, encoder, plan, shards.

    Raises:
        ValueError: ``out`` holds other shards, images of a size that the encoder does not take, an embedding that is
            not finite in float16, or a text encoder for samples without texts.
    """
    from tqdm import tqdm

    checked(batch, "batch")
    checked(per_shard, "per_shard")
    if suffix.rpartition(".")[2] != "npy":
        raise ValueError(f"suffix = {suffix!r} given; npy, or a name that ends in .npy, is accepted")
    if getattr(source, "mirror", False):
        raise ValueError("a mirrored data set given; embed it as it is")
    items = _Items(source, encoder)
    plan = {"source": fingerprint(source), "encoder": encoder.name, "size": encoder.size, "suffix": suffix}
    names, sizes = _partition(source, per_shard)
    writer = ShardWriter(out, plan | {"per_shard": None if isinstance(source, Shards) else per_shard})
    bar = tqdm(total=len(source), desc="embed", unit="sample", disable=not progress, smoothing=0.05)
    start = 0
    for name, size in zip(names, sizes, strict=True):
        run, start = range(start, start + size), start + size
        if name in writer.done:
            bar.update(size)
            continue
        with writer.shard(name) as (add, skipped):
            waiting: list[tuple[int, Tensor | str]] = []
            for i, item in in_order(items, run, workers):
                if item is None:
                    skipped.append(items.name(i))
                else:
                    waiting.append((i, item))
                if waiting and (len(waiting) == batch or i == run[-1]):
                    for (j, _), vector in zip(waiting, _encoded(encoder, [x for _, x in waiting]), strict=True):
                        add(items.key(j), {suffix: _npy(vector)})
                    waiting = []
                bar.update()
    bar.close()
    return writer.finish(encoder=encoder.name)


def _partition(source: Dataset, per_shard: int) -> tuple[list[str], list[int]]:
    """Names and sizes of the shards to write."""
    if isinstance(source, Shards):
        names = [f.name for f in source.samples.files]
        if len(set(names)) < len(names):
            raise ValueError("shards of the same name in several folders; embed one folder at a time")
        return names, list(source.shard_sizes)
    sizes = [min(per_shard, len(source) - i) for i in range(0, len(source), per_shard)]
    return [f"{k:06d}.tar" for k in range(len(sizes))], sizes


class _Items(Dataset):
    """Item i: what the encoder reads of sample i, or None where it cannot be decoded."""

    def __init__(self, source: Dataset, encoder: Encoder) -> None:
        self.source, self.reads, self.size, self.named = source, encoder.reads, encoder.size, encoder.name
        if self.reads != "image" and not (isinstance(source, Shards) and self.reads in source.samples.suffixes):
            raise ValueError(f"{encoder.name} reads {self.reads!r}, which the data set does not hold")

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        return self.source.samples.key(i) if isinstance(self.source, Shards) else f"{i:09d}"

    def name(self, i: int) -> str:
        return self.source.name(i) if isinstance(self.source, Images) else str(i)

    def __getitem__(self, i: int) -> Tensor | str | None:
        try:
            if self.reads != "image":
                return decode(self.reads, self.source.samples.read(i, self.reads))
            item = self.source.load(i) if isinstance(self.source, Images) else self.source[i]
        except UNREADABLE:
            return None
        if item is not None and self.size is not None and item[0].shape[1:] != (self.size, self.size):
            side = "x".join(map(str, item[0].shape[1:]))
            raise ValueError(f"image {self.name(i)} is {side}; {self.named} takes {self.size}x{self.size}: set size")
        return None if item is None else item[0]


@torch.inference_mode()
def _encoded(encoder: Encoder, items: list) -> np.ndarray:
    """(B, ...) float16."""
    vectors = encoder.function(torch.stack(items) if encoder.reads == "image" else items).half().cpu()
    if not vectors.isfinite().all():
        raise ValueError(f"{encoder.name} gives embeddings that are not finite in float16")
    return vectors.numpy()


def _npy(vector: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    return buffer.getvalue()


class Embeddings(Dataset):
    """Embeddings in shards; item i is a float32 tensor.

    Args:
        where: as ``Shards`` takes it.
        suffix: of the members; the one that ends in npy when left out.

    Raises:
        ValueError: no such members, or several kinds and none named.
    """

    def __init__(self, where: Location, suffix: str | None = None) -> None:
        self.samples = Samples(where)
        found = [s for s in self.samples.suffixes if s.rpartition(".")[2] == "npy" and suffix in (None, s)]
        if len(found) != 1:
            raise ValueError(f"{where} holds members {', '.join(self.samples.suffixes)}; name one that ends in npy")
        self.suffix = found[0]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < len(self):
            raise IndexError(f"embedding {i} of {len(self)}")
        return decode(self.suffix, self.samples.read(i, self.suffix)).float()

    def tensor(self) -> Tensor:
        """(N, ...) float32, all of them."""
        out = torch.empty(len(self), *self[0].shape)
        for i in range(len(self)):
            out[i] = self[i]
        return out
