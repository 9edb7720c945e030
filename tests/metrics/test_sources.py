"""Where images come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.metrics.embedders import default_features, embedder
from minidiff.metrics.evaluation import read, references, some
from minidiff.metrics.processes import Processes
from minidiff.metrics.sources import ArrayImages, image_set, is_image_set
from minidiff.pixels import to_uint8
from minidiff.recipes import load_recipe
from minidiff.store import begun, find, load
from minidiff.training.loop import train

TINY = str(Path(__file__).parents[1] / "training/tiny.yaml")
NETWORK = embedder("digits-classifier-clean")
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


def test_adm_layout(pixels, tmp_path):
    np.savez(tmp_path / "a.npz", pixels, np.arange(10))
    found = image_set(tmp_path / "a.npz")
    image, label = found[3]
    assert len(found) == 10 and label == 3 and image.shape == (3, 8, 8)
    assert np.array_equal(to_uint8(image).permute(1, 2, 0).numpy(), pixels[3])
    np.savez(tmp_path / "b.npz", pixels)
    assert image_set(tmp_path / "b.npz")[0][1] == -1


def test_a_folder_and_an_array_hold_the_same_images(pixels, tmp_path):
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    np.savez(tmp_path / "a.npz", pixels)
    folder, array = image_set(tmp_path), image_set(tmp_path / "a.npz")
    assert all(torch.allclose(folder[i][0], array[i][0], atol=1e-6) for i in range(10))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, "no images under arr_0"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.float32)}, "must be uint8"),
        ({"arr_0": np.zeros((2, 3, 8, 8), np.uint8)}, "must be uint8 of shape"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8), "arr_1": np.zeros(3)}, "2 labels"),
        ({"arr_0": np.array([None, "code"], dtype=object)}, "no images under arr_0"),
    ],
)
def test_arrays_that_are_no_images(content, message, tmp_path):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=message):
        ArrayImages(tmp_path / "a.npz")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="no images under arr_0"):
        image_set(tmp_path / "a.npz")


def test_what_can_hold_images(tmp_path):
    assert is_image_set("a.npz") and is_image_set("a.zip") and is_image_set(tmp_path)
    (tmp_path / "card.json").touch()
    assert not any(is_image_set(name) for name in (tmp_path, "digits", tmp_path / "nowhere"))


def test_the_averaged_weights_of_a_run(tmp_path):
    recipe = load_recipe(TINY, ["training.steps=3"])
    averaged = train(recipe, begun, tmp_path, cpu=True, quiet=True)
    found = find(str(tmp_path))
    assert found.recipe == recipe and found.path == tmp_path / "last.safetensors" and not found.system.training
    assert all(torch.equal(value, averaged[name]) for name, value in found.system.state_dict().items())


@pytest.mark.parametrize(
    ("name", "can", "message"),
    [
        ("digitz", "", "did you mean 'digits'"),
        ("x/y", "", "no checkpoint, run or preset 'x/y'"),
        ("digits", "classifier", "digits is a class_conditional, which has no classifier"),
        ("digits-classifier", "critic", "digits-classifier is a classifier, which has no critic"),
    ],
)
def test_systems_that_are_not_there_or_cannot_do_it(name, can, message):
    with pytest.raises(ValueError, match=message):
        load(name, can=can)


def test_two_processes_share_a_set(pixels, tmp_path):
    np.savez(tmp_path / "a.npz", pixels, np.arange(10))
    found = image_set(tmp_path / "a.npz")
    parts = [read(found, Processes(rank, 2, torch.device("cpu")), 3) for rank in range(2)]
    seen = [pair for share in parts for index, _, labels in share for pair in zip(index, labels, strict=True)]
    assert sorted((int(i), int(label)) for i, label in seen) == [(i, i) for i in range(10)]


def test_real_images_keep_the_shares_of_the_classes():
    found, name, other = references("train", load_recipe("digits").data, NETWORK)
    assert name == "digits train" and len(other) < len(found)
    labels = torch.cat([part[2] for part in some(found, 200, ALONE, 64, seed=0)])
    assert bool((torch.bincount(labels) - 20).abs().max() <= 1)


def test_several_sizes_are_refused(tmp_path):
    for i, side in enumerate((8, 9)):
        Image.new("L", (side, side)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"several sizes: \(3, 8, 8\), \(3, 9, 9\)"):
        list(read(image_set(tmp_path), ALONE, 4))


def test_references_that_are_not_there():
    with pytest.raises(ValueError, match="train, heldout or a folder"):
        references("nowhere", None, NETWORK)
    with pytest.raises(ValueError, match="name images with --reference"):
        references("heldout", None, NETWORK)


def test_kept_features_stand_in_for_images_that_are_not_there(monkeypatch):
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    data = load_recipe("cifar16").data
    network = embedder(default_features(data))
    found, name, other = references("heldout", data, network)
    assert found.features.shape == (len(found.labels), network.width) and name == "cifar10 heldout (kept)"
    assert other is None
    for split, features in (("train", network), ("heldout", NETWORK)):
        with pytest.raises(ValueError, match="MINIDIFF_DATA"):
            references(split, data, features)
