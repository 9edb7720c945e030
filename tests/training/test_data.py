"""From a recipe's words to images: every kind of set, and what is said when one is not there."""

import os

import pytest
import torch
from PIL import Image

from minidiff.data.cifar import CLASSES, cifar10
from minidiff.data.images import ImageFolder
from minidiff.recipes import DataRecipe
from minidiff.training.data import load_dataset, load_set

REAL = os.environ.get("MINIDIFF_DATA")


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for i in range(6):
            path = tmp_path / part / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (10, 8), (40 * i, 0, 255)).save(path)
    return tmp_path


def test_a_folder_by_parts_and_mirrored(folder):
    recipe = DataRecipe("folder", path=str(folder), mirror=True)
    train, heldout = load_dataset(recipe, 8), load_dataset(recipe, 8, "heldout")
    assert len(train) == 12 and len(heldout) == 6, "only training images are mirrored"
    assert train[0][0].shape == (3, 8, 8)
    images, labels = load_set(recipe, 8, "heldout", count=3)
    assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 0, 1], "spread evenly, classes in order"


def test_shards_by_parts(folder):
    from minidiff.data.pack import pack

    for part in ("train", "test"):
        pack(ImageFolder(folder / part), folder / "packed" / part, per_shard=4)
    recipe = DataRecipe("shards", path=str(folder / "packed"))
    found = load_dataset(recipe, 8)
    assert len(found) == 6 and list(found.shard_sizes) == [4, 2]
    assert sorted(int(found[i][1]) for i in range(6)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (DataRecipe("digit"), "did you mean 'digits'"),
        (DataRecipe("folder"), "data.path"),
        (DataRecipe("folder", path="/nowhere"), "/nowhere does not exist"),
        (DataRecipe("torchvision:CIFAR1O", path="."), "CIFAR10"),
        (DataRecipe("torchvision:CIFAR10", path="/nowhere"), "cannot be read from /nowhere"),
        (DataRecipe("cifar10", path="/nowhere"), "/nowhere"),
    ],
)
def test_sets_that_are_not_there(recipe, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(recipe, 8)


def test_cifar_needs_a_place(monkeypatch):
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match="MINIDIFF_DATA"):
        cifar10("heldout")
    with pytest.raises(ValueError, match="train, heldout"):
        cifar10("test")


@pytest.mark.skipif(not REAL, reason="MINIDIFF_DATA names no folder with the real images")
def test_cifar_reduced_is_the_average_picture_of_cifar():
    full, labels = cifar10("heldout", 32)
    small, same = cifar10("heldout", 16)
    assert full.shape == (10_000, 3, 32, 32) and torch.equal(labels, same)
    assert labels.bincount().tolist() == [1000] * len(CLASSES)
    blocks = torch.nn.functional.avg_pool2d(full, 2)
    assert (small - blocks).abs().mean() < 0.03, "close to the mean of each 2x2 block"
    assert torch.corrcoef(torch.stack([small.flatten(), blocks.flatten()]))[0, 1] > 0.99
