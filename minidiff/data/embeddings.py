"""What a frozen encoder said of every sample, read from the shards that ``data.embed`` wrote."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .samples import Location, Samples
from .shards import decode


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
