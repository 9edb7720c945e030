"""Training on pictures with captions: shards as img2dataset and ``minidiff data pack`` write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from minidiff.data.captioned import captioned_scenes
from minidiff.data.pack import picture
from minidiff.data.recipe import DataRecipe
from minidiff.data.sets import load_dataset, load_set
from minidiff.data.tokenizer import tokenizer
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.loop import train

TINY = str(Path(__file__).with_name("tiny-glide.yaml"))


@pytest.fixture(scope="module")
def scenes():
    return captioned_scenes(10, 16, torch.Generator().manual_seed(0), "seen")


@pytest.fixture(scope="module")
def folder(scenes, tmp_path_factory):
    """Shards as img2dataset writes them: five digits a shard, nine a sample, jpg, txt and json; sample 4 is broken."""
    out = tmp_path_factory.mktemp("pairs")
    for shard in range(2):
        with tarfile.open(out / f"{shard:05d}.tar", "w") as archive:
            for i in range(5 * shard, 5 * shard + 5):
                buffer = io.BytesIO()
                picture(scenes.images[i]).save(buffer, "JPEG", quality=95)
                image = b"not a picture" if i == 4 else buffer.getvalue()
                about = {"caption": scenes.captions[i], "url": "", "key": f"{i:09d}", "status": "success"}
                members = {"jpg": image, "txt": scenes.captions[i].encode(), "json": json.dumps(about).encode()}
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return out


def test_items_are_pictures_and_tokens(folder, scenes):
    found = load_dataset(DataRecipe("shards", 16, path=str(folder), train="", tokenizer="scenes"))
    assert len(found) == 10 and list(found.shard_sizes) == [5, 5]
    expected = tokenizer("scenes")(scenes.captions)
    for i in (0, 3, 5, 9):
        item = found[i]
        assert item.keys() == {"image", "caption"} and torch.equal(item["caption"], expected[i])
        assert (item["image"] - scenes.images[i]).abs().mean() < 0.1, "as far as JPEG keeps it"
    assert torch.equal(found[4]["caption"], expected[5]), "a broken picture takes its caption with it"
    assert found.broken == ["00000.tar/000000004"]


def test_in_memory_and_without_captions(folder):
    columns = load_set(DataRecipe("shards", 8, path=str(folder), train="", tokenizer="scenes"), count=5)
    images, tokens = columns["image"], columns["caption"]
    assert images.shape == (4, 3, 8, 8) and tokens.shape == (4, 12), "of five, the broken one is left out"
    assert tokens.dtype == torch.long
    unread = load_dataset(DataRecipe("shards", 8, path=str(folder), train=""))
    assert unread.second == "label" and len(unread) == 10, "labels without a tokenizer"


def test_a_system_trains_on_them(folder, tmp_path):
    """Whole shards at a time, in worker processes, the broken picture included."""
    data = ["data.name=shards", f"data.path={folder}", "data.train=", "data.workers=1", "training.steps=3"]
    averaged = train(load_recipe(TINY, data), Recipe.build, tmp_path, cpu=True, quiet=True)
    assert all(bool(value.isfinite().all()) for value in averaged.values())


def with_captions(out: Path, captions: list[str]) -> DataRecipe:
    """Shards of plain pictures with these captions."""
    out.mkdir()
    with tarfile.open(out / "0.tar", "w") as archive:
        for i, caption in enumerate(captions):
            buffer = io.BytesIO()
            picture(torch.full((3, 16, 16), i / 10)).save(buffer, "PNG")
            for suffix, content in (("png", buffer.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return DataRecipe("shards", 16, path=str(out), train="", heldout="", tokenizer="scenes")


def test_captions_that_the_tokenizer_refuses_are_skipped_and_named_at_loading(scenes, tmp_path, caplog):
    captions = scenes.captions[:6]
    captions[2], captions[4] = "a photograph of my cat", " ".join(["red"] * 200)
    recipe = with_captions(tmp_path / "some", captions)
    found = load_dataset(recipe)
    assert found.broken == ["0.tar/002", "0.tar/004"], "known before anything is drawn"
    assert "2 of 6 captions" in caplog.text and "no word" in caplog.text and "0.tar/004" in caplog.text
    expected = tokenizer("scenes")(scenes.captions[:6])
    assert torch.equal(found[2]["caption"], expected[3]) and found.own(2) is None
    assert torch.equal(load_set(recipe)["caption"], expected[[0, 1, 3, 5]]), "in memory they are left out"
    with pytest.raises(ValueError, match=r"2 of 2 captions in .* are not read by scenes: .*no word 'nothing'"):
        load_dataset(with_captions(tmp_path / "none", ["nothing here", "nothing"]))
