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
    assert images.shape == (5, 3, 8, 8) and tokens.shape == (5, 12) and tokens.dtype == torch.long
    unread = load_dataset(DataRecipe("shards", 8, path=str(folder), train=""))
    assert unread.second == "label" and len(unread) == 10, "labels without a tokenizer"


def test_a_system_trains_on_them(folder, tmp_path):
    """Whole shards at a time, in worker processes, the broken picture included."""
    data = ["data.name=shards", f"data.path={folder}", "data.train=", "data.workers=1", "training.steps=3"]
    averaged = train(load_recipe(TINY, data), Recipe.build, tmp_path, cpu=True, quiet=True)
    assert all(bool(value.isfinite().all()) for value in averaged.values())
