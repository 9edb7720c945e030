"""Class numbers never travel without the names they stand for."""

from __future__ import annotations

import os
import unicodedata
import zipfile

import pytest

from minidiff.data.images import ImageFolder
from minidiff.data.pack import pack
from minidiff.data.recipe import DataRecipe
from minidiff.data.sets import classes_of, load_dataset
from minidiff.data.shards import Shards

NFC, NFD = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))


@pytest.fixture
def made(tmp_path, picture_file):
    """``made("train/ant/0.png", ...)``: a folder with these pictures; with ``archive=True`` a zip archive."""

    def make(*names: str, archive: bool = False):
        if archive:
            with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
                for name in names:
                    file.writestr(name, picture_file(9))
            return tmp_path / "set.zip"
        for name in names:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(picture_file(9))
        return tmp_path / "set"

    return make


def named(data) -> list[tuple[str, str]]:
    return [(data.name(i), data.classes[label]) for i, label in enumerate(data.labels.tolist())]


def test_a_held_out_folder_is_numbered_by_the_table_of_training(made):
    path = made("train/ant/0.png", "train/bee/0.png", "train/cow/0.png", "test/cow/0.png", "test/bee/0.png")
    recipe = DataRecipe("folder", 8, path=str(path))
    heldout = load_dataset(recipe, "heldout")
    assert heldout.classes == classes_of(recipe) == ("ant", "bee", "cow")
    assert [int(heldout[i]["label"]) for i in range(2)] == [1, 2]
    made("test/dog/0.png", "test/eel/0.png")
    with pytest.raises(ValueError, match=r"images of dog, eel, which no class .*: ant, bee, cow are"):
        load_dataset(recipe, "heldout")


def test_held_out_images_without_the_training_images_are_refused(made):
    recipe = DataRecipe("folder", 8, path=str(made("test/bee/0.png")))
    with pytest.raises(ValueError, match=r"numbered as those of training, but no images in .*below 'train'"):
        load_dataset(recipe, "heldout")


def test_a_name_in_two_forms_is_one_class(made):
    path = made(f"train/{NFC}/0.png", f"train/{NFD}/1.png", "train/zebra/2.png", f"test/{NFD}/0.png")
    train = ImageFolder(path, within="train")
    assert train.classes == (NFC, "zebra") and sorted(train.labels.tolist()) == [0, 0, 1] and not train.check()
    heldout = ImageFolder(path, within="test", classes=train.classes)
    assert heldout.labels.tolist() == [0] and heldout[0][0].shape == (3, 8, 8)


def test_packed_parts_keep_the_table_of_the_whole_set(made, tmp_path):
    path = made("train/ant/0.png", "train/bee/0.png", "test/bee/0.png", "test/cow/1.png", "previews/all.png")
    for part in ("train", "test"):
        pack(ImageFolder(path, within=part, classes="all"), tmp_path / "packed" / part)
    for part, expected in (("train", [("ant", 0), ("bee", 1)]), ("test", [("bee", 1), ("cow", 2)])):
        data = Shards(tmp_path / "packed" / part)
        assert data.classes == ("ant", "bee", "cow")
        assert sorted((data.classes[label], label) for _, label in data) == expected
    assert ImageFolder(path, within="train", classes="all").classes == ("ant", "bee", "cow")


def test_shards_that_number_by_themselves_are_read_by_name(made, tmp_path):
    path = made("train/ant/0.png", "train/bee/0.png", "test/bee/0.png", "odd/cow/0.png")
    for part in ("train", "test", "odd"):
        pack(ImageFolder(path, within=part), tmp_path / "packed" / part)
    assert Shards(tmp_path / "packed/test").labels.tolist() == [0]
    heldout = load_dataset(DataRecipe("shards", 8, path=str(tmp_path / "packed")), "heldout")
    assert heldout.classes == ("ant", "bee") and int(heldout[0]["label"]) == 1
    with pytest.raises(ValueError, match="classes that are not in the table: cow; there are ant, bee"):
        load_dataset(DataRecipe("shards", 8, path=str(tmp_path / "packed"), heldout="odd"), "heldout")


@pytest.mark.parametrize("archive", [False, True])
def test_folders_of_one_name_in_two_places_are_two_classes(made, archive):
    path = made("cats/young/0.png", "dogs/young/0.png", "dogs/old/0.png", archive=archive)
    data = ImageFolder(path)
    assert named(data) == [
        ("cats/young/0.png", "cats/young"), ("dogs/old/0.png", "old"), ("dogs/young/0.png", "dogs/young")
    ]  # fmt: skip


def test_parts_of_a_set_hold_the_same_classes(made):
    path = made("train/cat/0.png", "test/cat/0.png", "train/train/0.png")
    assert ImageFolder(path).classes == ("cat", "train"), "a class may be called train"


def test_whole_numbers_are_in_order(made):
    path = made(*(f"{i}/0.png" for i in range(12)))
    assert ImageFolder(path).classes == tuple(map(str, range(12)))
    made("a10/0.png", "a2/0.png")
    assert ImageFolder(path).classes[:3] == ("0", "1", "10"), "among other names as torchvision sorts them"


@pytest.mark.parametrize("written", ["{}\\{}\\{}", "./{}/{}/{}", "wrapper/{}/{}/{}", "/{}//{}/{}"])
def test_archives_of_other_programs(made, written):
    places = [("train", "ant", "0.png"), ("train", "bee", "0.png"), ("test", "bee", "0.png")]
    path = made(*(written.format(*place) for place in places), archive=True)
    data = ImageFolder(path, within="train")
    assert data.classes == ("ant", "bee") and data.labels.tolist() == [0, 1] and data.check() == []
    assert ImageFolder(path, within="train/bee").classes == ("bee",)


def test_a_link_into_its_own_folder_repeats_nothing(made):
    path = made("ant/0.png", "bee/0.png", "else/1.png")
    os.symlink(path, path / "ant" / "up")
    os.symlink(path / "else", path / "linked")
    assert ImageFolder(path).names == ("ant/0.png", "bee/0.png", "else/1.png", "linked/1.png")


def test_a_tilde_is_the_home_folder(made, tmp_path, monkeypatch):
    path = made("ant/0.png")
    pack(ImageFolder(path), tmp_path / "packed")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ImageFolder("~/set")) == len(Shards("~/packed")) == 1


def test_a_flat_folder_says_what_to_do(made):
    path = made("0.png", "1.png")
    with pytest.raises(ValueError, match=r"below 'train'.*2 elsewhere in it; data.train=\"\" takes all"):
        load_dataset(DataRecipe("folder", 8, path=str(path)))
