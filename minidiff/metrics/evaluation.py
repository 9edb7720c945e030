"""What ``minidiff evaluate`` does: sets of images through what judges them, beside a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from ..arguments import Count, checked
from ..data.embedder import Embedder
from ..data.images import Images
from ..data.recipe import DataRecipe
from ..data.sets import SPLITS, Columns, Items, class_names, load_dataset, load_set, require_names, second
from ..random import sample_generators
from ..recipes import Recipe
from ..store import reference
from ..systems.diffusion import Diffusion
from .intervals import Interval, bootstrap, subset
from .processes import Processes
from .quality import bits_per_dim
from .report import Described, check_counts, measure
from .sources import image_set

Parts = Iterable[tuple[Tensor, Tensor, Tensor]]  # indices, images (b, C, H, W) in [-1, 1], labels


@checked
@dataclass
class Plan:
    """What is to be judged; a kind of plan says how: what is kept of an image, and how two sets compare.

    Attributes:
        rows: (what it is, guidance scale or None, its images) of each row.
        count: Number of images in each row.
        reference: Real images, or what was kept of them.
        reference_name: What to call them.
        facts: What else belongs into the record.
        seed: For intervals.
        draws: Resamples of an interval.
        batch: Images at a time.
        quiet: No progress bar.
    """

    rows: list[tuple[str, float | None, Parts]]
    count: int
    reference: Dataset | tuple[Tensor, ...]
    reference_name: str
    facts: dict = field(default_factory=dict, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    draws: Count = field(default=200, kw_only=True)
    batch: Count = field(default=64, kw_only=True)
    quiet: bool = field(default=False, kw_only=True)

    @property
    def available(self) -> int:
        """Number of reference images."""
        return len(self.reference[0] if isinstance(self.reference, tuple) else self.reference)

    def see(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What is kept of images (b, C, H, W) with labels (b,): rows of several tensors."""
        raise NotImplementedError

    def measure(self, found: tuple[Tensor, ...], against: tuple[Tensor, ...]) -> dict[str, Interval]:
        """The measures, by name, of what was kept of a row, beside what was kept of the reference."""
        raise NotImplementedError

    def about(self) -> dict:
        """What the images were compared in: name, width, sha256."""
        raise NotImplementedError


@checked
@dataclass
class ByClass(Plan):
    """Sets of images in the features of a network that knows classes.

    Attributes:
        network: What images are compared in.
        labelled: Whether the labels of images are classes of the network.
        neighbours: For precision and recall.

    Raises:
        ValueError: for sets too small, see ``check_counts``.
    """

    network: Embedder
    labelled: bool = True
    neighbours: Count = field(default=3, kw_only=True)

    def __post_init__(self):
        check_counts(self.count, self.available, self.network.width)

    def see(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        return self.network.images(images), self.network.classes(images), labels

    def measure(self, found: tuple[Tensor, ...], against: tuple[Tensor, ...]) -> dict[str, Interval]:
        options = {"seed": self.seed, "draws": self.draws, "k": self.neighbours, "accuracy": self.labelled}
        return measure(Described(*found), Described(*against), **options)

    def about(self) -> dict:
        return {"name": self.network.name, "width": self.network.width, "sha256": self.network.sha256}


def references(
    name: str, data: DataRecipe | None, network: Embedder, learnt: tuple[str, ...] = ()
) -> tuple[Dataset | Described, str, Dataset | None]:
    """The reference, what to call it, and the other split of its data set where there is one.

    Features that are kept beside a network stand in for held-out images that are not at hand.

    Args:
        name: "heldout", "train", or a path to images.
        data: The data set whose splits are meant.
        network: What images are compared in.
        learnt: What whoever is judged calls the classes of that data set; () where that is not known.

    Raises:
        ValueError: when it cannot be read, a split of no known set is meant, or its classes are not those that were
            learnt.
    """
    if name not in SPLITS:
        if not Path(name).exists():
            raise ValueError(f"the reference must be {', '.join(SPLITS)} or a folder, zip or npz file; got {name!r}")
        return image_set(name, network.class_names), name, None
    if data is None:
        raise ValueError(f"these features belong to no data set that has a {name} part: name images with --reference")
    try:
        other, found = (load_dataset(data, split) for split in (SPLITS[1 - SPLITS.index(name)], name))
    except ValueError:
        if name != "heldout" or network.data is None or network.data.name != data.name:
            raise
        features, labels = reference(network.name)
        kept = Described(features, features.new_zeros(len(features), 0), labels)
        return kept, f"{data.name} heldout (kept)", None
    require_names(class_names(found), learnt, f"{data.name} {name}", "what is judged")
    return _pairs(found), f"{data.name} {name}", _pairs(other)


def _pairs(found: Dataset) -> Dataset:
    """A data set of columns as one of images and labels."""
    if isinstance(found, Columns):
        return TensorDataset(found.columns["image"], second(found.columns))
    return found.found if isinstance(found, Items) else found


@checked
def read(
    found: Dataset, here: Processes, batch: Count, chosen: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of a set, or of the ``chosen`` indices into it; broken images are left out.

    Raises:
        ValueError: for images of several sizes.
    """
    chosen = torch.arange(len(found)) if chosen is None else chosen
    for mine in torch.tensor(here.share(len(chosen))).split(batch):
        items = [found.own(i) if isinstance(found, Images) else found[i] for i in chosen[mine].tolist()]
        good = torch.tensor([item is not None for item in items])
        if not good.any():
            continue
        images, labels = zip(*(item for item in items if item is not None), strict=True)
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"the images have several sizes: {', '.join(map(str, sorted(shapes)))}")
        yield mine[good], torch.stack(images), torch.as_tensor(labels)


@checked
def some(found: Dataset, count: int, here: Processes, batch: Count, seed: int) -> Parts:
    """``count`` random images of a set, of each class its share.

    Raises:
        ValueError: when the set holds fewer.
    """
    labels = found.tensors[1] if isinstance(found, TensorDataset) else torch.as_tensor(found.labels)
    chosen = subset(labels, count, torch.Generator().manual_seed(seed))
    return read(found, here, batch, chosen)


@checked
def real_rows(found: Dataset | None, count: int, *args) -> list[tuple[str, None, Parts]]:
    """The row of as many real images, which says what could be reached; none where there are too few."""
    enough = found is not None and len(found) >= count
    return [("real", None, some(found, count, *args))] if enough else []


@checked
def describe(parts: Parts, count: int, plan: Plan, here: Processes, what: str) -> tuple[Tensor, ...] | None:
    """What a plan keeps of a set of images, in the first process; None in the others, which help.

    Raises:
        ValueError: when no image can be decoded.
    """

    def seen() -> Iterator[tuple[Tensor, ...]]:
        share = len(here.share(count))
        with tqdm(total=share, desc=what, unit="image", disable=plan.quiet or here.rank > 0, leave=False) as bar:
            for index, images, labels in parts:
                yield index, *plan.see(images.to(here.device), labels)
                bar.update(len(index))

    found = here.gathered(seen())
    if found == ():
        raise ValueError(f"{what}: none of the {count} images can be decoded")
    return None if found is None else tuple(tensor.to(here.device) for tensor in found)


def judge(plan: Plan, here: Processes) -> dict | None:
    """The record of a plan: its measures row by row; None in all processes but the first.

    Raises:
        ValueError: for images that do not fit, or fewer images than processes.
    """
    if here.world > min(plan.count, plan.available):
        raise ValueError(f"{here.world} processes are too many for {min(plan.count, plan.available)} images")
    against = plan.reference
    if isinstance(against, Dataset):
        against = describe(read(against, here, plan.batch), plan.available, plan, here, plan.reference_name)
    else:
        against = tuple(tensor.to(here.device) for tensor in against)
    rows = []
    for what, scale, parts in plan.rows:
        found = describe(parts, plan.count, plan, here, what)
        if found is not None:
            ends = {name: interval._asdict() for name, interval in plan.measure(found, against).items()}
            judged = {"images": len(found[0]), "left_out": plan.count - len(found[0])}
            rows.append({"what": what, "scale": scale, **judged, "measures": ends})
    if here.rank > 0:
        return None
    read_of = len(against[0])
    reference = {"name": plan.reference_name, "images": read_of, "left_out": plan.available - read_of}
    return plan.facts | {"images": plan.count, "reference": reference, "features": plan.about(), "rows": rows}


@checked
def bound(
    system: Diffusion, recipe: Recipe, count: int, here: Processes, seed: int = 0, quiet: bool = False, draws=200
):
    """The bound on held-out images over all steps of the schedule, as a record; None in all processes but the first.

    Raises:
        ValueError: when there are fewer images than asked for, or than processes.
    """
    heldout = load_set(recipe.data, "heldout", count)
    found_images = len(heldout["image"])
    if not here.world <= count <= found_images:
        raise ValueError(f"need between {here.world} and {found_images} held-out images for the bound, got {count}")

    def parts() -> Iterator[tuple[Tensor, ...]]:
        share = torch.tensor(here.share(count))
        with tqdm(total=len(share), desc="bits/dim", unit="image", disable=quiet or here.rank > 0, leave=False) as bar:
            for mine in share.split(32):
                generators = sample_generators(seed, [f"bound {i}" for i in mine.tolist()], here.device.type)
                batch = {name: column[mine].to(here.device) for name, column in heldout.items()}
                values = {part.key: part.observe(batch, generators) for part in system.parts}
                terms = bits_per_dim(system, batch["image"], generators, **values)
                yield mine, terms.total, terms.prior, terms.steps.sum(0), terms.decoder
                bar.update(len(mine))

    found = here.gathered(parts())
    if found is None:
        return None
    record, generator = {"images": count, "steps": system.schedule.T}, torch.Generator().manual_seed(seed)
    for name, values in zip(("total", "prior", "steps_kl", "decoder"), found, strict=True):
        record[name] = bootstrap(torch.mean, values, generator=generator, draws=draws)._asdict()
    return record
