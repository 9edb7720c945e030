"""Which data to learn from, as a recipe says it."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import Bins, Count, Natural, Share, checked

EMBEDDINGS = ("embedding", "text_embedding")


@checked
@dataclass(frozen=True)
class DataRecipe:
    """Which data to learn from.

    Attributes:
        name: "digits", "shapes"; "scenes", "scenes-pairs" and "emoji" (with captions), "cifar10", "folder" (or a zip
            archive), "shards" (with captions where a tokenizer is named), or "torchvision:NAME".
        size: Side of the images in pixels, whatever the network's.
        images: Number of images to render, for sets without a fixed size.
        seed: Seed of that rendering.
        bins: Number of values a pixel can take.
        path: Where the images lie, for sets that are not made here.
        train: Folder below ``path`` (or split of torchvision's set) to train on; "" for all.
        heldout: The same for the images to evaluate on.
        mirror: Every image is also seen flipped left to right.
        grey: Colours are averaged: images have one channel.
        workers: Processes that decode images, per training process.
        tokenizer: Who reads the captions, of images that have some.
        reading: Probability that a caption of scenes names the left or the upper object first.
        explicit: Share of the scenes whose caption leaves no shape and no colour open.
        embedding: Folder with the embeddings of the images by a frozen network, a column of that name; below it
            ``train`` and ``heldout`` as for the images. ``minidiff data embed-for`` writes it.
        text_embedding: The same of the captions.
        plain: Captions of scenes call everything by its own name, with no synonym (``captions.plain_captions``).
        language: The frozen text encoder whose states of the captions are learnt from, see ``models.language``, or a
            clean CLIP.
        text_states: Folder with these states, columns "text_states" and "text_mask". ``minidiff data embed-for`` writes
            it; several encoders may share one.
        states_length: Tokens that the states of a text in shards are filled or cut to.
        hands: Of emoji: whose drawings, "noto" or "fluent" or both; with both, captions name the hand half of the time.

    Raises:
        ValueError: for a number out of range.
    """

    name: str
    size: Count
    images: Natural = 0
    seed: int = 0
    bins: Bins = 256
    path: str | None = None
    train: str = "train"
    heldout: str = "test"
    mirror: bool = False
    grey: bool = False
    workers: Natural = 0
    tokenizer: str = ""
    reading: Share = 0.5
    explicit: Share = 0.0
    embedding: str = ""
    text_embedding: str = ""
    hands: tuple[str, ...] = ("noto",)
    plain: bool = False
    language: str = ""
    text_states: str = ""
    states_length: Count = 256

    @property
    def embeddings(self) -> dict[str, str]:
        """Columns that frozen networks made, and the folders they lie in."""
        return {name: getattr(self, name) for name in EMBEDDINGS if getattr(self, name)}

    def part(self, split: str) -> str:
        """Folder of a split."""
        return {"train": self.train, "heldout": self.heldout}[split]
