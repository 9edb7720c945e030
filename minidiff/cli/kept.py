"""Pictures that are kept while more are drawn, so that a run that is killed loses none and goes on."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import remove_leftovers, write_atomically


class Kept:
    """The pictures of one command, one file a batch, in a folder beside the file that they will make.

    Args:
        out: That file; the folder is called after it, with ".parts" at the end.
        settings: What the pictures depend on. Those of other settings are not taken for one's own.
    """

    def __init__(self, out: Path, settings: Mapping):
        self.folder = out.with_name(f"{out.name}.parts")
        self._mark = hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]

    def begin(self, first: bool = True) -> None:
        """Make the folder; the first process also removes what other settings left in it.

        Raises:
            ValueError: when it cannot be written to: better now than after the work.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f".{self._mark}").touch()
        except OSError as error:
            raise ValueError(
                f"{self.folder.parent} cannot be written to ({error.strerror or error}); choose another --out"
            ) from None
        if first:
            remove_leftovers(self.folder)
            for path in self.folder.iterdir():
                if self._mark not in path.name:
                    path.unlink(missing_ok=True)

    def add(self, index: Tensor, pixels: Tensor) -> None:
        """Keep the pictures (b, H, W, C), uint8, of the indices (b,)."""
        buffer = io.BytesIO()
        np.savez(buffer, index=index.numpy(), pixels=pixels.numpy())
        write_atomically(self.folder / f"{self._mark}-{int(index[0]):09d}.npz", buffer.getvalue())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices and pictures of every batch that is kept; files that cannot be read are none."""
        for path in sorted(self.folder.glob(f"{self._mark}-*.npz")):
            try:
                with np.load(path) as part:
                    yield torch.from_numpy(part["index"]), torch.from_numpy(part["pixels"])
            except (OSError, ValueError, KeyError, EOFError):
                path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove the folder if it holds no picture: nothing was drawn."""
        if not any(self.folder.glob("*.npz")):
            self.end()

    def end(self) -> None:
        """Remove the folder: the pictures are where they belong."""
        shutil.rmtree(self.folder, ignore_errors=True)
