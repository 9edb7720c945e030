"""What is judged of a model, or of a set of images: by the class or by the caption that its samples were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ..arguments import checked
from ..condition import each
from ..data.embedder import Embedder
from ..data.prompts import Sheet, sheets
from ..data.recipe import DataRecipe
from ..data.sets import classes_of
from ..pixels import quantize
from ..recipes import Recipe
from .captions import ByCaption, asked
from .drawing import Drawing
from .embedders import default_clip, default_features, embedder
from .evaluation import ByClass, Parts, Plan, read, real_rows, references, some
from .processes import Processes
from .sources import ArrayImages, image_set

IMAGES, AGAIN = 1000, 100  # drawn of a model with classes; captions that are drawn twice


@checked
@dataclass(frozen=True)
class Evaluation:
    """What to judge, and how.

    Attributes:
        scales: Guidance scales.
        images: Pictures to draw of each scale, or to take of a set; the default when left out.
        captions: Captions of each sheet; the default when left out.
        again: Captions drawn twice, for diversity; the default when left out.
        reference: "heldout", "train", or a path to images.
        features: What images are compared in; the data set's own when left out.
        neighbours: For precision and recall.
        seed: For the choice of images, and for intervals.
        draws: Resamples of an interval.
        batch: Images at a time.
        quiet: No progress bar.

    Raises:
        ValueError: for fewer of something than can be judged, or a scale that is not finite.
    """

    scales: tuple[float, ...] = (1.0,)
    images: int | None = None
    captions: int | None = None
    again: int | None = None
    reference: str = "heldout"
    features: str | None = None
    neighbours: int = 3
    seed: int = field(default=0, kw_only=True)
    draws: int = field(default=200, kw_only=True)
    batch: int = field(default=64, kw_only=True)
    quiet: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        for name, least in (
            ("images", 1),
            ("captions", 2),
            ("again", 0),
            ("neighbours", 1),
            ("draws", 20),
            ("batch", 1),
        ):
            given = getattr(self, name)
            if given is not None and given < least:
                raise ValueError(f"{name} must be at least {least}, got {given}")
        if not self.scales or not all(map(math.isfinite, self.scales)):
            raise ValueError(f"one guidance scale or more, each finite, is accepted, got {list(self.scales)}")

    @property
    def common(self) -> dict:
        """What every plan has in common."""
        return {name: getattr(self, name) for name in ("seed", "draws", "batch", "quiet")}


@checked
def judges(drawing: Drawing) -> str:
    """What the samples of a model are judged by: "caption" or "class"."""
    return "caption" if drawing.part is not None and drawing.part.judge == "caption" else "class"


@checked
def plans(drawing: Drawing, recipe: Recipe, how: Evaluation, here: Processes, facts: dict) -> list[Plan]:
    """The plans by which a model is judged.

    Args:
        drawing: How it draws.
        recipe: Of the base.
        how: What to judge.
        here: This process among its peers.
        facts: What else belongs into the record.

    Raises:
        ValueError: when something that is asked for is not there, or the model draws nothing by itself.
    """
    by = {"caption": _by_caption, "class": _by_class}[judges(drawing)]
    return by(drawing, recipe, how, here, facts)


def _by_class(drawing: Drawing, recipe: Recipe, how: Evaluation, here: Processes, facts: dict) -> list[Plan]:
    """Real images first, then what the system draws at each scale, each class in turn."""
    data = replace(recipe.data, size=drawing.systems[-1].drawn_shape[1])
    network = embedder(how.features or default_features(recipe.data), here.device)
    learnt = drawing.class_names
    reference, name, other = references(how.reference, data, network, learnt)
    count = how.images or IMAGES
    values, number = drawing.answers({}, count)
    drawn = partial(_drawn, drawing, here, values, number, data.bins)
    rows = real_rows(other, count, here, how.batch, how.seed)
    rows += [(f"s = {scale:g}", scale, drawn(scale)) for scale in how.scales]
    told = bool((number >= 0).all())
    labelled, labels = told and _alike(network, data, learnt), "each class in turn" if told else "none"
    if told and not labelled and network.n_classes:
        labels = f"not compared: {network.name} has other classes, or does not say which"
    facts = facts | {"labels": labels}
    more = {"facts": facts, "neighbours": how.neighbours}
    return [ByClass(rows, count, reference, name, network, labelled, **more, **how.common)]


def _alike(network: Embedder, data: DataRecipe, learnt: tuple[str, ...]) -> bool:
    """Whether a network numbers the same classes as a system that learnt some of a data set, as far as names tell."""
    if network.data is None:
        return False
    names = network.class_names, learnt or classes_of(data)
    return names[0] == names[1] != () or (() in names and network.data.name == data.name)


def _drawn(
    drawing: Drawing, here: Processes, values, number: Tensor, bins: int, scale: float, captions: Sequence[str] = ()
) -> Parts:
    """What a system draws at a scale, in the values that a file holds; the label of a picture is its number."""
    for index, images in drawing.draw(here, values, number, scale, captions):
        yield index, quantize(images, bins), number[index]


def _by_caption(drawing: Drawing, recipe: Recipe, how: Evaluation, here: Processes, facts: dict) -> list[Plan]:
    """For the held-out and for the seen captions: real pictures first, then what the system draws at each scale.

    With shards as the reference: for captions of theirs, beside their pictures.
    """
    data = recipe.data
    if how.reference != "heldout":
        data = replace(data, name="shards", path=how.reference, train="", heldout="")
    judged_by = embedder(how.features or default_clip(data), here.device)
    found = sheets(data, drawing.systems[-1].drawn_shape[1], how.captions, how.seed)
    n = len(found[0].captions)
    again = min(n, AGAIN if how.again is None else how.again)
    number = torch.cat([torch.arange(n), torch.arange(again)])
    facts = facts | {"captions": n, "drawn_twice": again}
    if found[0].grammar:
        facts["asked"] = {s.name: {name: int(m.sum()) for name, m in asked(s.captions).items()} for s in found}

    def plan(sheet: Sheet) -> Plan:
        rows, reference = _real(sheet, number, again, here, how.batch)
        values, _ = drawing.answers({"caption": sheet.captions}, n)
        values = [{key: each(lambda t: t[number], value) for key, value in own.items()} for own in values]
        drawn = partial(_drawn, drawing, here, values, number, data.bins)
        rows += [(f"{sheet.name}, s = {scale:g}", scale, drawn(scale, sheet.captions)) for scale in how.scales]
        name = f"real pictures of the same {data.name} captions"
        return ByCaption(rows, len(number), reference, name, sheet, judged_by, facts=facts, **how.common)

    return [plan(sheet) for sheet in found]


def _real(sheet: Sheet, number: Tensor, again: int, here: Processes, batch: int) -> tuple[list, TensorDataset]:
    """The row of real pictures of a sheet, where it has several of each caption, and the others as the reference."""
    first, *others = sheet.pictures
    if not others:
        return [], _unnumbered([first])
    real = TensorDataset(torch.cat([first, others[0][:again]]), number)
    return [(f"{sheet.name}, real", None, read(real, here, batch))], _unnumbered(others[1:])


def _unnumbered(pictures: list[Tensor]) -> TensorDataset:
    every = torch.cat(pictures)
    return TensorDataset(every, torch.full((len(every),), -1))


@checked
def plan_of_images(source: str, how: Evaluation, here: Processes) -> Plan:
    """Real images first where the features know any, then the set.

    Raises:
        ValueError: when no features are named, or the set holds fewer images than are asked for.
    """
    if not how.features:
        raise ValueError(f"{source} is a set of images: name the network to compare them in with --features")
    network = embedder(how.features, here.device)
    known = _known(network)
    found = image_set(source, known)
    reference, name, other = references(how.reference, network.data, network, network.learnt)
    count = how.images or len(found)
    if count > len(found):
        raise ValueError(f"{source} holds {len(found)} images, not {count}")
    rows = real_rows(other, count, here, how.batch, how.seed)
    rows.append((Path(source).name, None, some(found, count, here, how.batch, how.seed)))
    labelled, note = _labels(found, network, known)
    more = {"facts": {"labels": note}, "neighbours": how.neighbours}
    return ByClass(rows, count, reference, name, network, labelled, **more, **how.common)


def _known(network: Embedder) -> tuple[str, ...]:
    """What a network calls its classes: their numbers, where its data have no names; () where it knows no data."""
    if network.data is None:
        return ()
    return network.class_names or tuple(str(i) for i in range(network.n_classes))


def _labels(found: Dataset, network: Embedder, known: tuple[str, ...]) -> tuple[bool, str]:
    """Whether the labels of a set of images are the classes of the network that judges it, and what to say of it."""
    if network.data is None:
        return False, f"not compared: what {network.name} calls its classes is not known"
    if isinstance(found, ArrayImages):
        return True, f"numbers of the classes of {network.name}"
    if tuple(found.classes) == known:
        return True, f"folders, by the names of the classes of {network.name}"
    few = lambda names: ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return False, f"not compared: the folders are {few(found.classes)}; {network.name} knows {few(known)}"
