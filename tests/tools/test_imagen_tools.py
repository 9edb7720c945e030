"""The records of lesson 12: complete, readable, and of what they say."""

import json
import re

import pytest
import torch

from minidiff.data.captions import parse
from minidiff.data.render import render
from minidiff.data.scenes import Object, Scene, Scenes
from minidiff.files import sha256
from minidiff.recipes import load_recipe
from minidiff.store import weights_path
from tools import efficient, imagen, scaling
from tools.lessons import ROOT

recorded = lambda name: json.loads((ROOT / f"data/{name}.json").read_text())
PROMPTS = recorded("drawbench")["prompts"]
SAID = "a red ring above a blue square"


def picture(size: int) -> torch.Tensor:
    """(1, 3, size, size) of what ``SAID`` says."""
    ring, square = Object("ring", "red", "large", 0.5, 0.27, 0.18), Object("square", "blue", "large", 0.5, 0.74, 0.18)
    return render(Scenes.of([Scene((ring, square))]), size)


def test_the_bench_has_eight_prompts_of_each_kind_and_the_grammar_says_what_they_mean():
    kinds = {p["category"] for p in PROMPTS}
    assert all(sum(p["category"] == kind for p in PROMPTS) == 8 for kind in kinds) and len(kinds) == 6
    assert len({p["prompt"] for p in PROMPTS}) == len(PROMPTS)
    for p in PROMPTS:
        assert str(parse(p["means"])) == p["means"]


def test_rare_words_are_no_words_of_training():
    seen = {word for caption in imagen.sheet() for word in caption.split()}
    for p in PROMPTS:
        if p["category"] == "rare words":
            assert set(p["prompt"].split()) - seen, f"{p['prompt']!r} has no new word"


def test_imagens_rows_are_complete_and_of_the_committed_weights():
    result = recorded("imagen")
    assert result["weights"] == sha256(weights_path(imagen.NETWORK))
    asked = {(rule, scale) for rule in imagen.RULES for scale in imagen.SCALES}
    assert {(row["rule"], row["scale"]) for row in result["rows"]} == asked and len(result["rows"]) == len(asked)
    n = imagen.CAPTIONS
    assert result["captions"] == imagen.sheet() and len(result["captions"]) == n
    for row in result["rows"]:
        assert all(len(row[key]) == n for key in ("verdicts", "clip", "outside", "saturated"))
        assert all(re.fullmatch("[01]{6}", digits) for digits in row["verdicts"])
        assert row["frechet"][1] < row["frechet"][0] < row["frechet"][2]
        if row["rule"] != "none":
            assert max(row["outside"]) == 0
    for copies in result["bench"].values():
        assert len(copies) == imagen.COPIES and all(len(copy) == len(PROMPTS) for copy in copies)


def test_what_is_found_in_a_real_picture():
    assert imagen.found([SAID, "a blue square below a red ring"], picture(16).repeat(2, 1, 1, 1)) == ["111111"] * 2
    assert imagen.found(["a blue ring above a red square"], picture(16)) == ["111000"]


@pytest.mark.parametrize("name", scaling.ROWS)
def test_a_painter_differs_in_its_reader_or_its_width(name):
    recipe, middle = scaling.recipe_of(name), load_recipe("imagen8")
    assert recipe.training == middle.training and recipe.data.images == middle.data.images
    encoder, channels = scaling.ROWS[name]
    assert (recipe.data.language, recipe.network.channels) == (encoder, channels)
    row = recorded("scaling")["rows"][name]
    assert row["parameters"] == sum(p.numel() for p in recipe.build(empty=True).parameters())
    assert all(len(errors) == scaling.UNSEEN and min(errors) > 0 for errors in row["misses"].values())
    assert all(len(v) == scaling.UNSEEN and set("".join(v)) <= {"0", "1"} for v in row["verdicts"].values())


def test_a_bag_of_words_does_not_notice_an_exchange():
    errors = recorded("scaling")["rows"]["words"]["misses"]
    assert torch.allclose(torch.tensor(errors["the caption"]), torch.tensor(errors["its objects exchanged"]), atol=2e-6)


def test_false_captions_are_false_and_other_words_true():
    images, captions = scaling.sheet()
    assert len(images) == len(captions) == scaling.UNSEEN
    turned, exchanged = scaling.turned(SAID), scaling.exchanged(SAID)
    assert (turned, exchanged) == ("a red ring below a blue square", "a blue square above a red ring")
    assert scaling.renamed("an orange ring above a blue square") == "a tangerine ring above an azure square"
    assert scaling.found([SAID, turned, exchanged], picture(8).repeat(3, 1, 1, 1)) == ["111", "110", "110"]


def test_both_enlargers_are_of_one_size_and_learn_alike():
    ours, theirs = (efficient.recipe_of(name) for name in efficient.NETWORKS)
    assert ours.training == theirs.training and ours.data == theirs.data and not ours.start
    sizes = [sum(p.numel() for p in recipe.build(empty=True).parameters()) for recipe in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    result = recorded("efficient")
    assert [row["parameters"] for row in result["rows"].values()] == [sizes[0], sizes[1], sizes[1]]
    assert all(len(row["misses"]) == efficient.UNSEEN for row in result["rows"].values())
    spent = [row["steps"] * result["seconds_a_step"][row["network"]] for row in result["rows"].values()]
    assert spent[2] == pytest.approx(spent[0], rel=0.1)
