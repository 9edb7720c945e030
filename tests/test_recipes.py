"""Recipes: every bad value is refused by name, every committed recipe builds."""

import pytest
import yaml
from minidiff.systems.zoo import build, card, checkpoints, data_folder

from minidiff.recipes import Recipe, available, from_dict, load_recipe


@pytest.mark.parametrize("name", available())
def test_committed_recipes_build_and_survive_a_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert from_dict(Recipe, yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe
    assert build(recipe, empty=True).shape[1] == recipe.network.size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.step=3", r"recipe\.training\.step: did you mean 'steps'"),
        ("sistem=x", r"recipe\.sistem: did you mean 'system'"),
        ("training.steps=many", r"training\.steps must be of type int, got 'many'"),
        ("training.steps=true", r"training\.steps must be of type int, got True"),
        ("training.lr=fast", r"training\.lr must be of type float"),
        ("network.channel_mult=two", r"channel_mult must be of type float"),
        ("network.size=9", r"size 9 must be divisible"),
        ("training", r"not of the form key=value"),
        ("system.x=1", r"system has no keys"),
        ("schedule=linear", r"schedule must be a mapping"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", [override])


def test_bad_systems_and_files(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'digit'.*did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(ValueError, match=r"unknown system 'gan'"):
        build(load_recipe("digits", ["system=gan"]))
    with pytest.raises(ValueError, match=r"unknown schedule 'linar'.*'linear'"):
        build(load_recipe("digits", ["schedule.name=linar"]))
    path = tmp_path / "x.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(str(path))
    path.write_text("system: classifier\n")
    with pytest.raises(ValueError, match="lacks network, data, training"):
        load_recipe(str(path))


def test_numbers_that_yaml_reads_as_strings():
    assert load_recipe("digits", ["training.lr=1e-3"]).training.lr == 1e-3


@pytest.mark.parametrize("name", checkpoints())
def test_a_checkpoint_is_what_its_committed_recipe_makes(name):
    described = card(name)
    assert from_dict(Recipe, described["recipe"]) == load_recipe(name)
    assert described["steps"] == described["recipe"]["training"]["steps"] and described["seconds"] > 0
    assert described["metrics"] and described["trained_with"]


def test_checkpoints_take_at_most_40_mib():
    assert sum(path.stat().st_size for path in data_folder().rglob("*.safetensors")) <= 40 * 2**20


def test_fresh_parts_need_a_start():
    with pytest.raises(ValueError, match="without a start"):
        load_recipe("glide-wide", ["start="])
