"""The ablation changes what it says it changes, at equal size; its results are those of its variants."""

import dataclasses
import json

import pytest

from minidiff.recipes import load_recipe
from tools.ablation import SEEDS, VARIANTS, recipe_of
from tools.lessons import ROOT

RESULT = json.loads((ROOT / "data/ablation.json").read_text())


def parameters(variant: str) -> int:
    return sum(p.numel() for p in recipe_of(variant, 0).build(empty=True).parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_of_equal_size(variant):
    assert parameters(variant) == pytest.approx(parameters("base"), rel=0.025)
    assert RESULT["variants"][variant]["parameters"] == parameters(variant)
    assert len(RESULT["variants"][variant]["runs"]) == len(SEEDS) == len(RESULT["seeds"])


def test_a_variant_changes_its_option_the_widths_and_nothing_else():
    base = load_recipe("ablation-base")
    for variant, (_, options, _) in VARIANTS.items():
        recipe = recipe_of(variant, 7)
        assert recipe.training == dataclasses.replace(base.training, seed=7) and recipe.data == base.data
        mine, theirs = dataclasses.asdict(recipe.network), dataclasses.asdict(base.network)
        changed = {key for key in mine if mine[key] != theirs[key]} - {"channel_mult"}
        assert changed == {option.partition("=")[0] for option in options}


def test_the_results_are_of_this_recipe():
    plan = load_recipe(RESULT["recipe"]).training
    assert (RESULT["steps"], RESULT["batch"]) == (plan.steps, plan.batch)
