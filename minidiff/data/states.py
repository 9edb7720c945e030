"""What a frozen text encoder says of every token of many texts: computed once, each text once, and looked up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..arguments import Count, checked, floats
from ..files import write_atomically

Encoder = Callable[[list[str]], tuple[Tensor, Tensor]]  # B texts -> (B, L, W) states and (B, L) bool, which count
HALF = 65504.0  # the largest number of float16


class Looked:
    """A column whose row i is that of a table, which many rows share; half precision at rest, float32 when read.

    Args:
        table: (N, ...).
        index: (B,) which row of the table each row is.
    """

    def __init__(self, table: Tensor, index: Tensor):
        self.table, self.index = table, index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i) -> Tensor:
        """The row of an integer, or the rows of many."""
        found = self.table[self.index[i]]
        return found.float() if found.is_floating_point() else found

    @property
    def shape(self) -> torch.Size:
        """(B, ...)."""
        return torch.Size([len(self), *self.table.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """Of the table."""
        return self.table.dtype

    def is_floating_point(self) -> bool:
        """True: it is a column of real numbers, or of which of them count, whose texts another column holds."""
        return True


@checked
class TextStates:
    """States of texts, read from a file of ``store_states``.

    Attributes:
        states: (N, L, W) float16, zeros where no token is.
        mask: (N, L) bool, which tokens are there.

    Args:
        path: The file.
        encoder: Name of the encoder that is to have made it; any when left out.

    Raises:
        ValueError: for another encoder, or no such file.
        FileNotFoundError: when nothing is there.
    """

    def __init__(self, path: str | os.PathLike, encoder: str = ""):
        if not Path(path).is_file():
            raise FileNotFoundError(path)
        with safe_open(str(path), "pt") as file:
            described, lengths = file.metadata() or {}, file.get_tensor("lengths")
            self.encoder, self.texts = described.get("encoder", ""), json.loads(described.get("texts", "[]"))
            packed = file.get_tensor("states")
        if encoder and encoder != self.encoder:
            raise ValueError(f"the states in {path} are those of {self.encoder!r}, not of {encoder!r}")
        self.mask = torch.arange(int(lengths.max())) < lengths[:, None]
        self.states = packed.new_zeros(*self.mask.shape, packed.shape[1])
        self.states[self.mask] = packed
        self._row = {text: i for i, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str]) -> Tensor:
        """(B,) where B texts stand.

        Raises:
            ValueError: for a text that is not among them.
        """
        missing = next((text for text in texts if text not in self._row), None)
        if missing is not None:
            raise ValueError(
                f"no states of {missing!r}: `minidiff data embed-for RECIPE` computes those of new captions"
            )
        return torch.tensor([self._row[text] for text in texts])

    def columns(self, texts: Sequence[str]) -> dict[str, Looked]:
        """Columns "text_states" and "text_mask" of samples with these texts."""
        index = self.rows(texts)
        return {"text_states": Looked(self.states, index), "text_mask": Looked(self.mask, index)}


@checked
def store_states(
    path: str | os.PathLike,
    texts: Sequence[str],
    encoder: Encoder,
    name: str,
    batch: Count = 256,
    progress: bool = False,
) -> int:
    """Write what an encoder says of the tokens of texts: float16, without padding, each distinct text once.

    A file by the same encoder that holds them all is left as it is.

    Args:
        path: The file.
        texts: Texts.
        encoder: From texts to states and mask, such as ``models.language.Language.text_states``.
        name: Of the encoder.
        batch: Texts at a time.
        progress: Show a progress bar.

    Returns:
        The number of texts in the file.

    Raises:
        ValueError: for no texts, a file by another encoder, or states that are not finite in float16.
    """
    from tqdm import tqdm

    if Path(path).is_file():
        stored = TextStates(path, name)
        if set(texts) <= set(stored.texts):
            return len(stored.texts)
    distinct = sorted(dict.fromkeys(texts), key=len)  # of one length at a time: less padding is computed
    if not distinct:
        raise ValueError("states of no texts are asked for; one or more are accepted")
    packed, lengths = [], []
    bar = tqdm(total=len(distinct), desc="embed", unit="text", disable=not progress)
    for first in range(0, len(distinct), batch):
        states, mask = encoder(distinct[first : first + batch])[:2]
        packed.append(_half(states[mask], name))
        lengths.append(mask.sum(1).cpu())
        bar.update(len(mask))
    bar.close()
    tensors = {"states": torch.cat(packed), "lengths": torch.cat(lengths)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, save(tensors, {"encoder": name, "texts": json.dumps(distinct)}))
    return len(distinct)


def _half(states: Tensor, name: str) -> Tensor:
    if not bool((states.abs() <= HALF).all()):
        raise ValueError(f"{name} gives states that are not finite in float16")
    return states.half().cpu()


@checked
def filled(states: floats("l W"), length: Count) -> dict[str, Tensor]:
    """States of one text (l, W), filled with zeros or cut to a length: "text_states" and "text_mask"."""
    states = states[:length].float()
    mask = torch.arange(length) < len(states)
    return {"text_states": F.pad(states, (0, 0, 0, length - len(states))), "text_mask": mask}
