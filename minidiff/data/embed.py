"""What a frozen encoder says of every sample, computed once and stored in shards of ``KEY.npy``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..arguments import Count, Natural, checked
from .digests import fingerprint
from .embedder import Embedder
from .images import UNREADABLE, Images
from .pack import PER_SHARD, in_order
from .shards import Shards, decode
from .writer import ShardWriter


@checked
def embed(
    source: Dataset | Sequence,
    embedder: Embedder,
    out: str | os.PathLike,
    text: bool = False,
    batch: Count = 64,
    per_shard: Count = PER_SHARD,
    suffix: str = "npy",
    workers: Natural = 0,
    progress: bool = False,
) -> dict:
    """Write the embedding of every sample to shards, float16, in the order of the source and under its keys.

    The embeddings of ``Shards`` lie in shards of the same names, so that ``Shards(..., beside=[out])`` joins them;
    those of another data set in shards of ``per_shard`` samples, under the number of the sample. Samples that cannot be
    decoded are skipped and named in the index. A run that was interrupted goes on after its last whole shard.

    Args:
        source: ``Shards``, ``ImageFolder``, or any map-style data set whose items begin with an image.
        embedder: a frozen encoder.
        out: folder for the shards and ``index.json``.
        text: embed the captions of shards, in place of the images.
        batch: samples per call of the embedder.
        per_shard: samples per shard, where the source has no shards.
        suffix: what the members are called, "clip.npy" say, where several embeddings join the same samples.
        workers: processes that decode.
        progress: show a progress bar.

    Returns:
        The index: samples, skipped, encoder, plan, shards.

    Raises:
        ValueError: ``out`` holds other shards, images of a size that the encoder does not take, an embedding that is
            not finite in float16, or texts asked for where there are none.
    """
    from tqdm import tqdm

    if suffix.rpartition(".")[2] != "npy":
        raise ValueError(f"suffix = {suffix!r} given; npy, or a name that ends in .npy, is accepted")
    if getattr(source, "mirror", False):
        raise ValueError("a mirrored data set given; embed it as it is")
    items, name = _Items(source, embedder, text), f"{embedder.name} text" if text else embedder.name
    plan = {"source": fingerprint(source), "encoder": name, "size": items.size, "suffix": suffix}
    names, sizes = _partition(source, per_shard)
    writer = ShardWriter(out, plan | {"per_shard": None if isinstance(source, Shards) else per_shard})
    bar = tqdm(total=len(source), desc="embed", unit="sample", disable=not progress, smoothing=0.05)
    start = 0
    for shard, size in zip(names, sizes, strict=True):
        run, start = range(start, start + size), start + size
        if shard in writer.done:
            bar.update(size)
            continue
        with writer.shard(shard) as (add, skipped):
            for some in _decoded(items, run, workers, batch, skipped, bar):
                vectors = _encoded(embedder, text, [item for _, item in some])
                for (i, _), vector in zip(some, vectors, strict=True):
                    add(items.key(i), {suffix: _npy(vector)})
    bar.close()
    return writer.finish(encoder=name)


def _decoded(items: _Items, run: range, workers: Natural, batch: Count, skipped: list[str], bar) -> Iterator[list]:
    """Batches of (index, item) of one shard, in order; the names of what cannot be decoded go to ``skipped``."""
    waiting: list[tuple[int, Tensor | str]] = []
    for i, item in in_order(items, run, workers):
        if item is None:
            skipped.append(items.name(i))
        else:
            waiting.append((i, item))
        if waiting and (len(waiting) == batch or i == run[-1]):
            yield waiting
            waiting = []
        bar.update()


def _partition(source: Dataset, per_shard: Count) -> tuple[list[str], list[int]]:
    """Names and sizes of the shards to write."""
    if isinstance(source, Shards):
        names = [f.name for f in source.samples.files]
        if len(set(names)) < len(names):
            raise ValueError("shards of the same name in several folders; embed one folder at a time")
        return names, list(source.shard_sizes)
    sizes = [min(per_shard, len(source) - i) for i in range(0, len(source), per_shard)]
    return [f"{k:06d}.tar" for k in range(len(sizes))], sizes


class _Items(Dataset):
    """Item i: what the embedder reads of sample i, or None where it cannot be decoded."""

    def __init__(self, source: Dataset, embedder: Embedder, text: bool) -> None:
        self.source, self.text, self.named = source, text, embedder.name
        self.size = None if text else embedder.size
        if text and embedder.read is None:
            raise ValueError(f"{embedder.name} reads no texts")
        self.spoken = hasattr(source, "fingerprint")  # items are (image, text)
        if text and not self.spoken and not (isinstance(source, Shards) and "txt" in source.samples.suffixes):
            raise ValueError(f"{embedder.name} reads captions, members 'txt', which the data set does not hold")

    def __len__(self) -> int:
        return len(self.source)

    def key(self, i: int) -> str:
        return self.source.samples.key(i) if isinstance(self.source, Shards) else f"{i:09d}"

    def name(self, i: int) -> str:
        return self.source.name(i) if isinstance(self.source, Images) else str(i)

    def __getitem__(self, i: int) -> Tensor | str | None:
        try:
            if self.text and self.spoken:
                return self.source[i][1]
            if self.text:
                return decode("txt", self.source.samples.read(i, "txt"))
            item = self.source.load(i) if isinstance(self.source, Images) else self.source[i]
        except UNREADABLE:
            return None
        if item is not None and self.size is not None and item[0].shape[1:] != (self.size, self.size):
            side = "x".join(map(str, item[0].shape[1:]))
            raise ValueError(f"image {self.name(i)} is {side}; {self.named} takes {self.size}x{self.size}: set size")
        return None if item is None else item[0]


@torch.inference_mode()
def _encoded(embedder: Embedder, text: bool, items: list) -> list[np.ndarray]:
    """B embeddings in float16; those of texts may have lengths of their own, one state for each token."""
    found = embedder.texts(items) if text else embedder.images(torch.stack(items))
    vectors = [vector.half().cpu() for vector in found]
    if not all(bool(vector.isfinite().all()) for vector in vectors):
        raise ValueError(f"{embedder.name} gives embeddings that are not finite in float16")
    return [vector.numpy() for vector in vectors]


def _npy(vector: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector, allow_pickle=False)
    return buffer.getvalue()
