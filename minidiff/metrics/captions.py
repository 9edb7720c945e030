"""How well pictures fit their captions: by the oracle, by a CLIP, beside real pictures of the same captions.

Where no oracle reads the captions, a CLIP is to find the name of each picture among those of the sheet. What it finds
of real pictures is the most that can be expected of drawn ones; with the names dealt out anew it finds one in N.

Each caption is drawn once, and some are drawn once more, for diversity. Captions are the independent draws: Countervals
are over captions with their pictures, so they cover what other captions of the same kind would give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import checked, floats
from ..data.captions import judge, parse, relates
from ..data.embedder import Embedder
from ..data.oracle import read
from ..data.prompts import Sheet
from ..prediction import require_finite
from .evaluation import Plan
from .intervals import Interval, around, bootstrap, halves, proportion
from .quality import frechet_distance

FITS = {  # the verdicts of captions.judge, and their headings
    "count": "count",
    "shape": "shape",
    "color": "colour",
    "binding": "binding",
    "relation": "relation",
    "all": "all",
}
COLUMNS = {
    "named": "named",
    "named_real": "real",
    "named_shuffled": "shuffled",
    "named_5": "named in 5",
    "named_5_real": "real in 5",
    "named_5_shuffled": "shuffled in 5",
    "clip_score": "CLIP score",
    "frechet": "FD",
    "frechet_debiased": "FD - bias",
    "diversity": "diversity",
}
PART = 1024  # pictures that are compared with all captions at a time


@checked
def clip_score(images: floats("N E"), texts: floats("N E")) -> Tensor:
    """(N,) 2.5 max(cos(image, text), 0) of embeddings (N, E) each (Hessel et al. 2021, equation 1, w = 2.5)."""
    require_finite(images, "images")
    require_finite(texts, "texts")
    return 2.5 * F.cosine_similarity(images, texts).clamp(min=0)


@checked
def place_of_name(images: floats("N E"), texts: floats("N E"), captions: Sequence[str]) -> Tensor:
    """(N,) how many other captions fit a picture at least as well as its own does; 0 where its name is found.

    Args:
        images: (N, E) embeddings of pictures.
        texts: (N, E) those of their captions.
        captions: The N captions; equal ones are no others of each other.

    Raises:
        ValueError: for another number of captions, or embeddings that are not finite.
    """
    if len(captions) != len(images):
        raise ValueError(f"{len(images)} pictures have as many captions, got {len(captions)}")
    require_finite(images, "images")
    require_finite(texts, "texts")
    texts = texts.to(images)
    first = {caption: i for i, caption in reversed(list(enumerate(captions)))}
    numbers = {caption: number for number, caption in enumerate(first)}
    own = torch.tensor([numbers[caption] for caption in captions], device=images.device)[:, None]
    different = F.normalize(texts[list(first.values())], dim=1)
    parts = zip(F.normalize(images, dim=1).split(PART), own.split(PART), strict=True)
    fit = ((part @ different.T, own) for part, own in parts)
    return torch.cat([(found >= found.gather(1, own)).sum(1) - 1 for found, own in fit])


@checked
def named(images: floats("N E"), texts: floats("N E"), captions: Sequence[str]) -> dict[str, Interval]:
    """Shares of pictures whose caption fits best, or is one of the five that fit best, with Wilson's intervals."""
    place = place_of_name(images, texts, captions)
    return {"named": proportion(place < 1), "named_5": proportion(place < 5)}


@checked
def diversity(features: floats()) -> Tensor:
    """(N,) mean Euclidean distance between two of the K >= 2 pictures of a caption, features (N, K, E).

    Raises:
        ValueError: for a single picture of each, or what is not finite.
    """
    if features.ndim != 3 or features.shape[1] < 2:
        raise ValueError(f"features must be (captions, 2 pictures or more, width), got {tuple(features.shape)}")
    require_finite(features, "features")
    first, second = torch.triu_indices(features.shape[1], features.shape[1], 1)
    return (features[:, first] - features[:, second]).norm(dim=2).mean(1)


@checked
def fits(captions: Sequence[str], images: floats("N 3 S S")) -> dict[str, Tensor]:
    """What of each caption the oracle finds in its picture (N, 3, S, S): (N,) bool by name, see ``captions.judge``."""
    return judge(captions, read(images).scenes)


@checked
def asked(captions: Sequence[str]) -> dict[str, Tensor]:
    """For each verdict of ``fits`` the (N,) captions of scenes that ask for it.

    A binding takes two objects, and a relation words that tell one ("and" does not); everything else is always asked.
    """
    two = torch.tensor([len(parse(caption).phrases) == 2 for caption in captions])
    every = torch.ones(len(captions), dtype=torch.bool)
    told = torch.tensor([relates(caption) for caption in captions])
    return {name: {"binding": two, "relation": told}.get(name, every) for name in FITS}


@checked
@dataclass
class ByCaption(Plan):
    """Pictures of a sheet of captions. A row draws caption i at i, and the first captions again after that.

    The label of a picture is the number of its caption. The reference, whose labels are -1, holds real pictures of all
    captions, perhaps several of each: those of all, then again of all.

    Attributes:
        sheet: The captions.
        embedder: What pictures are compared in.
    """

    sheet: Sheet
    embedder: Embedder

    def __post_init__(self):
        if self.count < len(self.sheet.captions):
            raise ValueError(f"{self.count} pictures do not draw each of {len(self.sheet.captions)} captions")
        captions, parts = self.sheet.captions, range(0, len(self.sheet.captions), self.batch)
        reads = self.embedder.read is not None
        self._texts = torch.cat([self.embedder.texts(captions[i : i + self.batch]) for i in parts]) if reads else None

    @property
    def least(self) -> int:
        """Captions that a Frechet distance needs: half of them still have a covariance."""
        return 2 * (self.embedder.width + 1)

    def see(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Features (b, E), verdicts of the oracle (b, 6), CLIP score (b,); of the reference features alone."""
        features = self.embedder.images(images)
        verdicts, score = torch.zeros(len(images), 0), torch.zeros(len(images), 0)
        if bool((labels < 0).all()):
            return features, verdicts, score
        if self.sheet.grammar:
            found = fits([self.sheet.captions[i] for i in labels], images.cpu())
            verdicts = torch.stack([found[name] for name in FITS], 1)
        if self._texts is not None:
            score = clip_score(features, self._texts[labels])
        return features, verdicts, score

    def measure(self, found: tuple[Tensor, ...], against: tuple[Tensor, ...]) -> dict[str, Interval]:
        """The measures that there are: the verdicts, and ``COLUMNS``; "all_one" and "all_two" by number of objects.

        Names are looked for where no oracle reads the captions.
        """
        features, verdicts, score = found
        n, theirs, out = len(self.sheet.captions), against[0], {}
        if self.sheet.grammar:
            masks = asked(self.sheet.captions)
            for column, (name, mask) in enumerate(masks.items()):
                if mask.any():
                    out[name] = proportion(verdicts[:n, column][mask])
            for name, mask in (("all_one", ~masks["binding"]), ("all_two", masks["binding"])):
                if mask.any():
                    out[name] = proportion(verdicts[:n, -1][mask])
        if self._texts is not None:
            out["clip_score"] = self._interval(lambda i: score[i].mean(), n)
        copies = theirs.unflatten(0, (-1, n))
        if self._texts is not None and not self.sheet.grammar:
            out |= self._named(features[:n], copies[0])
        distance = lambda i: frechet_distance(features[i], copies[:, i].flatten(0, 1))
        if n >= self.least:
            value, scattered = distance(torch.arange(n)), halves(distance, torch.arange(n), **self._halves())
            out["frechet"] = around(value, scattered)
            out["frechet_debiased"] = around(2 * value - float(scattered.mean()), scattered)
        twice = self.count - n
        if twice >= 4:
            apart = diversity(torch.stack([features[:twice], features[n:]], 1))
            out["diversity"] = self._interval(lambda i: apart[i].mean(), twice)
        return out

    def about(self) -> dict:
        return {"name": self.embedder.name, "width": self.embedder.width, "sha256": self.embedder.sha256}

    def _named(self, drawn: Tensor, real: Tensor) -> dict[str, Interval]:
        """What is found of pictures (n, E) drawn, of real ones, and of those drawn for another caption."""
        captions, texts = self.sheet.captions, self._texts
        controls = {"real": named(real, texts, captions), "shuffled": named(drawn.roll(1, 0), texts, captions)}
        found = {f"{name}_{what}": x for what, control in controls.items() for name, x in control.items()}
        return named(drawn, texts, captions) | found

    def _halves(self) -> dict:
        return {"generator": torch.Generator().manual_seed(self.seed), "draws": self.draws}

    def _interval(self, statistic: Callable, n: int) -> Interval:
        return bootstrap(statistic, torch.arange(n), **self._halves())
