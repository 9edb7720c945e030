"""Whether more training helps: what goes on is the committed network, and its loss is that of the card."""

import json

import pytest
import torch

from minidiff.recipes import Recipe
from minidiff.store import begun, checkpoints, data_folder, load, recipe_of
from minidiff.training.checkpoint import export_weights
from tools.longer import OPEN, compared, going_on


@pytest.mark.parametrize("name", checkpoints())
def test_every_committed_network_can_go_on(name):
    recipe, folder = recipe_of(name), data_folder() / "checkpoints" / name
    further = going_on(recipe, folder, 0.1)
    assert further.training.steps == max(20, round(recipe.training.steps / 10)) and not further.fresh
    assert (further.data, further.network, further.options) == (recipe.data, recipe.network, recipe.options)
    own, theirs = load(name).state_dict(), begun(further).state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in theirs.items())


def test_the_change_is_small_for_a_network_that_is_trained_and_large_for_one_that_is_not(tmp_path):
    """A few steps of a network that has had its training, and as many of one whose weights were scaled down."""
    whole = data_folder() / "checkpoints" / "digits-weak"
    card = json.loads((whole / "card.json").read_text(encoding="utf-8"))
    spoilt = tmp_path / "digits-weak"
    spoilt.mkdir()
    weights = {name: tensor * 0.7 for name, tensor in load("digits-weak").state_dict().items()}
    export_weights(weights, spoilt / "model.safetensors", {"name": "digits-weak"})
    del card["sha256"]
    (spoilt / "card.json").write_text(json.dumps(card), encoding="utf-8")
    trained, untrained = (compared(place, 0.05, tmp_path / f"run{i}") for i, place in enumerate((whole, spoilt)))
    assert Recipe.from_plain(card["recipe"]).training.steps * 0.05 == trained["steps"]
    assert untrained["high"] < -0.1 < trained["low"] <= trained["change"] <= trained["high"] < 0.1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "Trained once, to the end of its recipe; whether more training still helps was not measured.",
            "Trained once, to the end of its recipe.",
        ),
        (
            "It lowered its loss; whether more still helps was not measured. And so on.",
            "It lowered its loss. And so on.",
        ),
    ],
)
def test_the_question_leaves_the_remark_once_it_is_answered(before, after):
    assert OPEN.sub("", before) == after
