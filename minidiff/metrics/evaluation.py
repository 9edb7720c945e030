"""What ``minidiff evaluate`` does: sets of images through a feature network, beside a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from tqdm import tqdm

from ..random import sample_generators
from ..recipes import DataRecipe, Recipe
from ..systems.zoo import reference
from ..training.data import load_dataset, load_set
from .intervals import bootstrap, subset
from .networks import FeatureNetwork
from .processes import Processes
from .quality import bits_per_dim
from .report import Described, check_counts, measure
from .sources import image_set

SPLITS = ("heldout", "train")
Parts = Iterable[tuple[Tensor, Tensor, Tensor]]  # indices, images (b, C, H, W) in [-1, 1], labels


@dataclass
class Plan:
    """What is to be judged, and how.

    Attributes:
        network: What images are compared in.
        reference: Real images, or how the network sees them.
        reference_name: What to call them.
        count: Number of images in each row.
        rows: (what it is, guidance scale or None, its images) of each row.
        facts: What else belongs into the record.
        labelled: Whether the labels of images are classes of the network.
        seed: For intervals.
        draws: Resamples of an interval.
        neighbours: For precision and recall.
        batch: Images at a time.
        quiet: No progress bar.

    Raises:
        ValueError: for sets too small, see ``check_counts``.
    """

    network: FeatureNetwork
    reference: Dataset | Described
    reference_name: str
    count: int
    rows: list[tuple[str, float | None, Parts]]
    facts: dict = field(default_factory=dict)
    labelled: bool = True
    seed: int = 0
    draws: int = 200
    neighbours: int = 3
    batch: int = 64
    quiet: bool = False

    def __post_init__(self):
        check_counts(self.count, self.available, self.network.width)

    @property
    def available(self) -> int:
        """Number of reference images."""
        return len(self.reference.labels if isinstance(self.reference, Described) else self.reference)


def references(
    name: str, data: DataRecipe | None, size: int | None, network: FeatureNetwork
) -> tuple[Dataset | Described, str, Dataset | None]:
    """The reference, what to call it, and the other split of its data set where there is one.

    Features that are kept beside a network stand in for held-out images that are not at hand.

    Args:
        name: "heldout", "train", or a path to images.
        data: The data set whose splits are meant.
        size: Side of its images.
        network: What images are compared in.

    Raises:
        ValueError: when it cannot be read, or a split of no known set is meant.
    """
    if name not in SPLITS:
        if not Path(name).exists():
            raise ValueError(f"the reference must be {', '.join(SPLITS)} or a folder, zip or npz file; got {name!r}")
        return image_set(name), name, None
    if data is None:
        raise ValueError(f"these features belong to no data set that has a {name} part: name images with --reference")
    try:
        other = load_dataset(data, size, SPLITS[1 - SPLITS.index(name)])
        return load_dataset(data, size, name), f"{data.name} {name}", other
    except ValueError:
        if name != "heldout" or network.data is None or network.data.name != data.name:
            raise
        features, labels = reference(network.name)
        kept = Described(features, features.new_zeros(len(features), 0), labels)
        return kept, f"{data.name} heldout (kept)", None


def read(
    found: Dataset, here: Processes, batch: int, chosen: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of a set, or of the ``chosen`` indices into it.

    Raises:
        ValueError: for images of several sizes.
    """
    chosen = torch.arange(len(found)) if chosen is None else chosen
    for mine in torch.tensor(here.share(len(chosen))).split(batch):
        images, labels = zip(*(found[i] for i in chosen[mine].tolist()), strict=True)
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise ValueError(f"the images have several sizes: {', '.join(map(str, sorted(shapes)))}")
        yield mine, torch.stack(images), torch.as_tensor(labels)


def some(found: Dataset, count: int, here: Processes, batch: int, seed: int) -> Parts:
    """``count`` random images of a set, of each class its share.

    Raises:
        ValueError: when the set holds fewer.
    """
    labels = found.tensors[1] if isinstance(found, TensorDataset) else torch.as_tensor(found.labels)
    chosen = subset(labels, count, torch.Generator().manual_seed(seed))
    return read(found, here, batch, chosen)


def real_rows(found: Dataset | None, count: int, *args) -> list[tuple[str, None, Parts]]:
    """The row of as many real images, which says what could be reached; none where there are too few."""
    enough = found is not None and len(found) >= count
    return [("real", None, some(found, count, *args))] if enough else []


def describe(parts: Parts, count: int, plan: Plan, here: Processes, what: str) -> Described | None:
    """A set as the network sees it, in the first process; None in the others, which help."""

    def seen() -> Iterator[tuple[Tensor, ...]]:
        share = len(here.share(count))
        with tqdm(total=share, desc=what, unit="image", disable=plan.quiet or here.rank > 0, leave=False) as bar:
            for index, images, labels in parts:
                features, log_prob = plan.network(images.to(here.device))
                yield index, features, log_prob, labels
                bar.update(len(index))

    found = here.gathered(seen())
    return None if found is None else Described(*found)


def judge(plan: Plan, here: Processes) -> dict | None:
    """The record of a plan: its measures row by row; None in all processes but the first.

    Raises:
        ValueError: for images that do not fit the network, or fewer images than processes.
    """
    if here.world > min(plan.count, plan.available):
        raise ValueError(f"{here.world} processes are too many for {min(plan.count, plan.available)} images")
    against = plan.reference
    if not isinstance(against, Described):
        against = describe(read(against, here, plan.batch), plan.available, plan, here, plan.reference_name)
    against = None if against is None else Described(*(tensor.to(here.device) for tensor in against))
    rows = []
    for what, scale, parts in plan.rows:
        found = describe(parts, plan.count, plan, here, what)
        if found is not None:
            options = {"seed": plan.seed, "draws": plan.draws, "k": plan.neighbours, "accuracy": plan.labelled}
            found = Described(*(tensor.to(here.device) for tensor in found))
            measures = measure(found, against, **options)
            ends = {name: interval._asdict() for name, interval in measures.items()}
            rows.append({"what": what, "scale": scale, "measures": ends})
    if here.rank > 0:
        return None
    network = plan.network
    return plan.facts | {
        "images": plan.count,
        "reference": {"name": plan.reference_name, "images": plan.available},
        "features": {"name": network.name, "width": network.width, "sha256": network.sha256},
        "rows": rows,
    }


def bound(
    system: nn.Module, recipe: Recipe, count: int, here: Processes, seed: int = 0, quiet: bool = False, draws=200
):
    """The bound on held-out images over all steps of the schedule, as a record; None in all processes but the first.

    Raises:
        ValueError: when there are fewer images than asked for, or than processes.
    """
    images, labels = load_set(recipe.data, recipe.network.size, "heldout", count)
    if not here.world <= count <= len(images):
        raise ValueError(f"need between {here.world} and {len(images)} held-out images for the bound, got {count}")

    def parts() -> Iterator[tuple[Tensor, ...]]:
        share = torch.tensor(here.share(count))
        with tqdm(total=len(share), desc="bits/dim", unit="image", disable=quiet or here.rank > 0, leave=False) as bar:
            for mine in share.split(32):
                generators = sample_generators(seed, [f"bound {i}" for i in mine.tolist()], here.device.type)
                given = (images[mine].to(here.device), labels[mine].to(here.device))
                terms = bits_per_dim(system, *given, generators)
                yield mine, terms.total, terms.prior, terms.steps.sum(0), terms.decoder
                bar.update(len(mine))

    found = here.gathered(parts())
    if found is None:
        return None
    record, generator = {"images": count, "steps": system.schedule.T}, torch.Generator().manual_seed(seed)
    for name, values in zip(("total", "prior", "steps_kl", "decoder"), found, strict=True):
        record[name] = bootstrap(torch.mean, values, generator=generator, draws=draws)._asdict()
    return record
