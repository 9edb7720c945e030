"""What lesson 12 compares networks by: rows that differ in what they should, and records that are complete."""

import json

import pytest
import torch

from tools import enlargers, scaling
from tools.lessons import ROOT

recorded = lambda name: json.loads((ROOT / f"data/{name}.json").read_text())
SAID = "an orange ring above a blue square"
count = lambda recipe: sum(p.numel() for p in recipe.build(empty=True).parameters())


@pytest.mark.parametrize("name", scaling.FROM_NOTHING)
def test_painters_from_nothing_differ_in_reader_width_or_seed_alone(name):
    encoder, channels, seed = scaling.FROM_NOTHING[name]
    recipe, middle = scaling.recipe_of(name), scaling.recipe_of(scaling.MIDDLE)
    assert not recipe.start and recipe.data.images == middle.data.images
    assert (recipe.data.language, recipe.network.channels, recipe.training.seed) == (encoder, channels, seed)
    plan = lambda r: {k: v for k, v in r.to_plain()["training"].items() if k != "seed"}
    assert plan(recipe) == plan(middle)


def test_the_rows_are_complete_and_of_these_networks():
    result = recorded("scaling")
    for where, names in (("rows", scaling.ROWS), ("from_nothing", scaling.FROM_NOTHING)):
        assert list(result[where]) == [name for name in names if name in result[where]]
        for name, row in result[where].items():
            assert row["parameters"] == count(scaling.recipe_of(name))
            assert all(len(errors) == scaling.UNSEEN and min(errors) > 0 for errors in row["misses"].values())
            assert all(len(v) == scaling.UNSEEN and set("".join(v)) <= {"0", "1"} for v in row["verdicts"].values())
    assert set(result["from_nothing"]) == set(scaling.FROM_NOTHING)


def test_a_bag_of_words_does_not_notice_an_exchange():
    errors = recorded("scaling")["rows"]["words"]["misses"]
    assert torch.allclose(torch.tensor(errors["the caption"]), torch.tensor(errors["its objects exchanged"]), atol=2e-6)


def test_false_captions_are_false_and_other_words_true():
    assert scaling.turned(SAID) == "an orange ring below a blue square"
    assert scaling.exchanged(SAID) == "a blue square above an orange ring"
    assert scaling.renamed(SAID) == "a tangerine ring above an azure square"


def test_racers_are_of_one_size_and_learn_for_one_time():
    ours, theirs = (enlargers.recipe_of(name) for name in enlargers.RACERS)
    assert not ours.start and not theirs.start and ours.training == theirs.training and ours.data == theirs.data
    assert count(ours) == pytest.approx(count(theirs), rel=0.1)
    result = recorded("enlargers")
    spent = [result["rows"][name]["steps"] * result["seconds_a_step"][name] for name in enlargers.RACERS]
    assert spent[1] == pytest.approx(spent[0], rel=0.02)
    for name in enlargers.RACERS:
        assert [len(errors) for errors in result["rows"][name]["misses"].values()] == [enlargers.UNSEEN] * 4


def test_readers_differ_in_what_they_are_told_alone():
    read_to, not_read_to = (enlargers.recipe_of(name) for name in enlargers.READERS)
    assert read_to.training == not_read_to.training and read_to.start == not_read_to.start == "glide-up32"
    parts = [[part.key for part in recipe.build(empty=True).parts] for recipe in (read_to, not_read_to)]
    assert parts == [["caption", "low_res"], ["low_res"]]
    for name in enlargers.READERS:
        row = recorded("enlargers")["rows"][name]
        assert list(row["errors"]) == list(row["verdicts"]) == [str(doubt) for doubt in enlargers.DOUBTS]
        assert all(len(v) == enlargers.UNSEEN for told in row["errors"].values() for v in told.values())
