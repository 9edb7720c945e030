"""From a recipe's words to images: every kind of set, and what is said when one is not there."""

import os
import re

import pytest
import torch
from PIL import Image

from minidiff.data.cifar import CLASSES, cifar10
from minidiff.data.images import ImageFolder
from minidiff.data.recipe import DataRecipe
from minidiff.data.sets import Columns, Items, load_dataset, load_set, require_classes, require_images, second

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
    recipe = DataRecipe("folder", 8, path=str(folder), mirror=True)
    train, heldout = load_dataset(recipe), load_dataset(recipe, "heldout")
    assert len(train) == 12 and len(heldout) == 6, "only training images are mirrored"
    assert train[0]["image"].shape == (3, 8, 8)
    three = load_set(recipe, "heldout", count=3)
    assert three["image"].shape == (3, 3, 8, 8), "as large as the recipe says"
    assert three["label"].tolist() == [0, 0, 1], "spread evenly, classes in order"
    assert load_set(recipe, "heldout")["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_shards_by_parts(folder):
    from minidiff.data.pack import pack

    for part in ("train", "test"):
        pack(ImageFolder(folder / part), folder / "packed" / part, per_shard=4)
    recipe = DataRecipe("shards", 8, path=str(folder / "packed"))
    found = load_dataset(recipe)
    assert len(found) == 6 and list(found.shard_sizes) == [4, 2]
    assert sorted(int(found[i]["label"]) for i in range(6)) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (DataRecipe("digit", 8), "did you mean 'digits'"),
        (DataRecipe("digits", 16), "digits are 8 pixels wide, and data.size is 16"),
        (DataRecipe("folder", 8), "data.path"),
        (DataRecipe("folder", 8, path="/nowhere"), "/nowhere does not exist"),
        (DataRecipe("torchvision:CIFAR1O", 8, path="."), "CIFAR10"),
        (DataRecipe("torchvision:CIFAR10", 8, path="/nowhere"), "cannot be read from /nowhere"),
        (DataRecipe("cifar10", 16, path="/nowhere"), "/nowhere"),
        (DataRecipe("scenes", 16, images=2), "data.tokenizer"),
    ],
)
def test_sets_that_are_not_there(recipe, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(recipe)


def test_splits_that_are_none():
    with pytest.raises(ValueError, match="train, heldout, got 'test'"):
        load_dataset(DataRecipe("digits", 8), "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "DataRecipe: size must be a whole number >= 1, got 0"),
        ({"images": -1}, "DataRecipe: images must be a whole number >= 0, got -1"),
        ({"bins": 0}, "DataRecipe: bins must be a whole number >= 2, got 0"),
        ({"bins": 1}, "DataRecipe: bins must be a whole number >= 2, got 1"),
        ({"workers": -1}, "DataRecipe: workers must be a whole number >= 0, got -1"),
        ({"reading": 1.5}, "DataRecipe: reading must be a number from 0 to 1, got 1.5"),
    ],
)
def test_numbers_out_of_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataRecipe(**({"name": "digits", "size": 8} | changes))


def test_rows_and_columns_are_dicts_by_name():
    found = Columns(image=torch.arange(12.0).view(6, 2), label=torch.arange(6))
    assert len(found) == 6 and found[2]["image"].tolist() == [4, 5] and found[2]["label"] == 2
    assert found[[5, 0]]["label"].tolist() == [5, 0] and found[torch.tensor([1])]["image"].tolist() == [[2, 3]]
    assert second({"image": 0, "label": 1}) == 1 and second({"image": 0, "caption": 2}) == 2


@pytest.mark.parametrize(("name", "said"), [("digits", "label"), ("shapes", "label"), ("scenes", "caption")])
def test_sets_in_memory(name, said):
    """Every row, or some that are spread over the set; what is rendered depends on the seed and the split alone."""
    size = {"digits": 8}.get(name, 16)
    recipe = DataRecipe(name, size, images=30, tokenizer="scenes" if said == "caption" else "")
    whole, again = load_set(recipe), load_set(recipe)
    assert whole.keys() == {"image", said} and all(torch.equal(whole[key], again[key]) for key in whole)
    n = len(whole["image"])
    assert whole["image"].shape[2:] == (size, size) and len(whole[said]) == n and (name == "digits" or n == 30)
    four = load_set(recipe, count=4)
    assert all(torch.equal(four[key], whole[key][[0, n // 4, n // 2, 3 * n // 4]]) for key in whole)
    assert torch.equal(load_set(recipe, count=n + 5)[said], whole[said]), "no more than there are"
    assert not torch.equal(load_set(recipe, "heldout", 4)["image"], four["image"])


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


class Held(torch.utils.data.Dataset):
    """Two grey pictures whose labels lie in an attribute, as torchvision's sets have them."""

    def __init__(self, **labels):
        vars(self).update(labels)

    def __len__(self):
        return 2


def test_labels_out_of_range_are_refused_wherever_they_lie():
    image, label = torch.zeros(2, 1, 8, 8), torch.tensor([0, 7])
    for found in (Columns(image=image, label=label), Items(Held(targets=[0, 7])), Items(Held(labels=label.numpy()))):
        require_classes(found, 8)
        with pytest.raises(ValueError, match="classes 0 to 7, and the system has 7"):
            require_classes(found, 7)
    with pytest.raises(ValueError, match="no labels"):
        require_classes(Columns(image=image, label=torch.tensor([-1, -1])), 10)
    for found in (Columns(image=image, caption=label), Items(Held(targets=[99, 99]), "caption"), Items(Held())):
        require_classes(found, 10)


def test_pictures_in_one_channel(folder):
    colour, grey = (DataRecipe("folder", 8, path=str(folder), grey=grey) for grey in (False, True))
    one, other = (load_dataset(recipe, "heldout") for recipe in (colour, grey))
    assert other[3]["image"].shape == (1, 8, 8) and other.own(3)["image"].shape == (1, 8, 8)
    assert torch.equal(other[3]["image"], one[3]["image"].mean(0, keepdim=True))
    assert load_set(grey)["image"].shape == (6, 1, 8, 8)
    assert load_set(DataRecipe("shapes", 16, images=4, grey=True))["image"].shape == (4, 1, 16, 16)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 8, 8), r"images are \(3, 8, 8\), and the network takes \(1, 8, 8\); data.grey=true averages"),
        ((3, 16, 16), r"takes \(3, 16, 16\); data.size says"),
        ((4, 8, 8), r"takes \(4, 8, 8\)$"),
    ],
)
def test_images_that_a_network_does_not_take(folder, shape, message):
    found = load_dataset(DataRecipe("folder", 8, path=str(folder)))
    require_images(found, (3, 8, 8))
    with pytest.raises(ValueError, match=message):
        require_images(found, shape)
