"""What is judged of a model, or of a set of images: by the class or by the caption that its samples were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from ..data.prompts import sheets
from ..pixels import quantize
from ..recipes import Recipe
from .captions import ByCaption, asked
from .drawing import Drawing
from .embedders import default_clip, default_features, embedder
from .evaluation import ByClass, Plan, read, real_rows, references, some
from .processes import Processes
from .sources import image_set

IMAGES, AGAIN = 1000, 100  # drawn of a model with classes; captions that are drawn twice


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

    @property
    def common(self) -> dict:
        """What every plan is told."""
        return {name: getattr(self, name) for name in ("seed", "draws", "batch", "quiet")}


def judges(drawing: Drawing) -> str:
    """What the samples of a model are judged by: "caption" or "class"."""
    return "caption" if drawing.part is not None and drawing.part.judge == "caption" else "class"


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
    data = replace(recipe.data, size=drawing.systems[-1].shape[1])
    network = embedder(how.features or default_features(recipe.data), here.device)
    reference, name, other = references(how.reference, data, network)
    count = how.images or IMAGES
    values, number = drawing.answers({}, count)

    def drawn(scale: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        parts = drawing.draw(here, values, number, scale)
        return ((index, quantize(images.clamp(-1, 1), data.bins), number[index]) for index, images in parts)

    rows = real_rows(other, count, here, how.batch, how.seed)
    rows += [(f"s = {scale:g}", scale, drawn(scale)) for scale in how.scales]
    labelled = network.data is not None and network.data.name == data.name and bool((number >= 0).all())
    more = {"facts": facts | {"labels": "each class in turn"}, "neighbours": how.neighbours}
    return [ByClass(rows, count, reference, name, network, labelled, **more, **how.common)]


def _by_caption(drawing: Drawing, recipe: Recipe, how: Evaluation, here: Processes, facts: dict) -> list[Plan]:
    """For the held-out and for the seen captions: real pictures first, then what the system draws at each scale.

    With shards as the reference: for captions of theirs, beside their pictures.
    """
    data = recipe.data
    if how.reference != "heldout":
        data = replace(data, name="shards", path=how.reference, train="", heldout="")
    judged_by = embedder(how.features or default_clip(data), here.device)
    found = sheets(data, drawing.systems[-1].shape[1], how.captions, how.seed)
    n = len(found[0].captions)
    again = min(n, AGAIN if how.again is None else how.again)
    number = torch.cat([torch.arange(n), torch.arange(again)])
    facts = facts | {"captions": n, "drawn_twice": again}
    if found[0].grammar:
        facts["asked"] = {s.name: {name: int(m.sum()) for name, m in asked(s.captions).items()} for s in found}

    def drawn(values, captions, scale: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        parts = drawing.draw(here, values, number, scale, captions)
        return ((index, quantize(images.clamp(-1, 1), data.bins), number[index]) for index, images in parts)

    made = []
    for sheet in found:
        first, *others = sheet.pictures
        rows, reference = [], [first]
        if others:
            real = TensorDataset(torch.cat([first, others[0][:again]]), number)
            rows, reference = [(f"{sheet.name}, real", None, read(real, here, how.batch))], others[1:]
        values, _ = drawing.answers({"caption": sheet.captions}, n)
        values = [{key: _rows(value, number) for key, value in own.items()} for own in values]
        for scale in how.scales:
            rows.append((f"{sheet.name}, s = {scale:g}", scale, drawn(values, sheet.captions, scale)))
        reference = TensorDataset(torch.cat(reference), torch.full((n * len(reference),), -1))
        name = f"real pictures of the same {data.name} captions"
        made.append(ByCaption(rows, len(number), reference, name, sheet, judged_by, facts=facts, **how.common))
    return made


def _rows(value, chosen: Tensor):
    return value[chosen] if isinstance(value, Tensor) else tuple(tensor[chosen] for tensor in value)


def plan_of_images(source: str, how: Evaluation, here: Processes) -> Plan:
    """Real images first where the features know any, then the set.

    Raises:
        ValueError: when no features are named, or the set holds fewer images than are asked for.
    """
    if not how.features:
        raise ValueError(f"{source} is a set of images: name the network to compare them in with --features")
    found, network = image_set(source), embedder(how.features, here.device)
    reference, name, other = references(how.reference, network.data, network)
    count = how.images or len(found)
    if count > len(found):
        raise ValueError(f"{source} holds {len(found)} images, not {count}")
    rows = real_rows(other, count, here, how.batch, how.seed)
    rows.append((Path(source).name, None, some(found, count, here, how.batch, how.seed)))
    classes = getattr(found, "classes", range(network.n_classes))
    labelled = network.data is not None and len(classes) == network.n_classes
    return ByClass(rows, count, reference, name, network, labelled, neighbours=how.neighbours, **how.common)
