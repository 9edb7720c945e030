"""Recipes: every bad value is refused by name, every committed recipe builds, and cards are what recipes make."""

import dataclasses
import re

import pytest
import yaml

from minidiff.recipes import FOLDER, SCHEDULES, Recipe, ScheduleRecipe, available, load_recipe
from minidiff.schedule import respaced
from minidiff.store import card, checkpoints, data_folder, recipe_of
from minidiff.systems.registry import find
from minidiff.training.plan import TrainingRecipe

DIGITS = {
    "name": "mine", "system": "class_conditional", "data": {"name": "digits", "size": 8}, "training": {"steps": 3},
    "network": {"size": 8, "channels": 8, "channel_mult": [1], "in_channels": 1, "out_channels": 1, "groups": 4},
}  # fmt: skip


WIDTHS = ("latent", "size", "embedding", "width")  # what the last axis of what a system draws, sees or says is called


@pytest.mark.parametrize("name", available())
def test_committed_recipes_build_and_survive_a_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    plain = yaml.safe_load(yaml.safe_dump(recipe.to_plain()))
    assert Recipe.from_plain(plain) == recipe and Recipe.from_plain(plain).to_plain() == plain
    system = recipe.build(empty=True)
    assert system.shape[-1] == next(getattr(recipe.network, name) for name in WIDTHS if hasattr(recipe.network, name))
    assert all(parameter.is_meta for parameter in system.parameters())
    if recipe.schedule and recipe.schedule.name in SCHEDULES:
        assert system.schedule.T == recipe.schedule.T


@pytest.mark.parametrize("name", checkpoints())
def test_a_card_holds_a_recipe_that_makes_what_lies_beside_it(name):
    described, recipe = card(name), recipe_of(name)
    assert recipe.name == name and Recipe.from_plain(recipe.to_plain()) == recipe
    told, full = described["recipe"]["system"], recipe.to_plain()["system"]
    assert told == {key: full[key] for key in told}, "cards are in the present spelling; later options at defaults"
    if name in available():
        assert recipe == load_recipe(name)
    assert described["parameters"] == sum(p.numel() for p in recipe.build(empty=True).parameters())
    assert described["steps"] == recipe.training.steps and described["seconds"] > 0
    assert described["metrics"] and described["trained_with"]


PUBLISHED = (
    "adm-",
    "cdm-",
    "sr3-",
    "karlo-",
    "glide-base",
    "glide-upsampler",
    "glide-paper",
    "unclip-paper",
    "imagen-paper",
)
DRAWERS = [name for name in available() if name.startswith(PUBLISHED) and not name.startswith("adm-classifier")]
PAPERS = {  # steps and sampler: table 3 of Ramesh et al. 2022, and the configuration files of SR3's re-implementation
    "sr3-16-128": ("2000", "ancestral", None),
    "sr3-64-512": ("2000", "ancestral", None),
    "glide-paper-base": ("100", "ancestral", 3.0),
    "glide-paper-upsampler": ("fast27", "ddim", 1.0),
    "unclip-paper-decoder": ("250", "ancestral", 1.25),
    "unclip-paper-up256": ("27", "ddim", None),
    "unclip-paper-up1024": ("15", "ddim", None),
}


@pytest.mark.parametrize("name", DRAWERS)
def test_a_preset_says_how_it_was_sampled_or_that_nothing_was_published(name):
    recipe, text = load_recipe(name), (FOLDER / f"{name}.yaml").read_text()
    assert (recipe.sampling is None) == ("# Sampling: " in text), "what is not published is said"
    if recipe.sampling:
        respaced(recipe.build(empty=True).schedule, recipe.sampling.steps)  # steps that its schedule has
    if name in PAPERS:
        way = recipe.sampling
        assert (way.steps, way.sampler, way.scale) == PAPERS[name]


def test_checkpoints_take_at_most_80_mb():
    """Megabytes of 2^20 bytes, as du counts them."""
    assert sum(path.stat().st_size for path in data_folder().rglob("*.safetensors")) <= 80 * 2**20


# --- a recipe from plain values -------------------------------------------------------------------------------------


def test_a_system_is_a_name_or_a_name_with_options():
    plain, options = Recipe.from_plain(DIGITS), find("class_conditional").options
    assert plain.system == "class_conditional" and plain.options == options()
    assert plain == Recipe.from_plain(DIGITS | {"system": {"name": "class_conditional"}})
    told = Recipe.from_plain(DIGITS | {"system": {"name": "class_conditional", "predicts": "v", "drop": 0.2}})
    assert told.options == options(predicts="v", drop=0.2)
    assert told.to_plain()["system"] == {
        "name": "class_conditional", "predicts": "v", "variance": "fixed", "drop": 0.2, "level_sampler": None,
        "autoencoder": "", "latent_scale": None,
    }  # fmt: skip
    assert plain.schedule == ScheduleRecipe(), "a system with noise levels has those of the house when none are named"
    assert plain.build().schedule.T == 1000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": None}, "recipe.system must be a name, or a mapping with a name; got None"),
        (
            {"system": {"predicts": "v"}},
            "recipe.system must be a name, or a mapping with a name; got {'predicts': 'v'}",
        ),
        ({"system": ["glide"]}, "recipe.system must be a name"),
        ({"system": "glid"}, "unknown system 'glid': did you mean 'glide'?"),
        ({"options": {"drop": 0.2}}, "unknown key recipe.options: options stand in the mapping recipe.system"),
        ({"nework": {}}, "unknown key recipe.nework: did you mean 'network'?"),
        ({"network": 3}, "recipe.network must be a mapping, got 3"),
        ({"schedule": {"name": "linar"}}, "unknown schedule 'linar': did you mean 'linear'?"),
        ({"schedule": {"betas": [0.1, 0.2]}}, "betas are those of a linear schedule, not of 'clipped_cosine'"),
        ({"data": {"name": "digits"}}, "recipe.data lacks size"),
        ({"training": {}}, "recipe.training lacks steps"),
        ({"fresh": ["network.text"]}, "fresh ['network.text'] without a start"),
    ],
)
def test_recipes_that_are_none(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe.from_plain(DIGITS | changes)


def test_what_a_recipe_lacks_is_named():
    for missing in ("system", "network", "data", "training", "name"):
        with pytest.raises(ValueError, match=f"recipe lacks {missing}"):
            Recipe.from_plain({key: value for key, value in DIGITS.items() if key != missing})
    with pytest.raises(ValueError, match="recipe must be a mapping, got 'digits'"):
        Recipe.from_plain("digits")


# --- files and overrides --------------------------------------------------------------------------------------------


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
        ("name.x=1", r"name has no keys"),
        ("system.x=1", r"unknown key recipe\.system\.x"),
        ("system=gan", r"unknown system 'gan'"),
        ("schedule=linear", r"schedule must be a mapping"),
        ("schedule.name=linar", r"unknown schedule 'linar'.*'linear'"),
        ("training.lr=[", r"'\[' is no value in YAML"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", [override])


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'digit'.*did you mean 'digits'"):
        load_recipe("digit")
    path = tmp_path / "x.yaml"
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_recipe(str(path))
    for text in ("- 1", "data: {}", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match="is no recipe: a mapping with a system is accepted"):
            load_recipe(str(path))
    path.write_text("system: classifier\n")
    with pytest.raises(ValueError, match="lacks network"):
        load_recipe(str(path))
    path.write_text(yaml.safe_dump({key: value for key, value in DIGITS.items() if key != "name"}))
    assert load_recipe(str(path)).name == "x", "a recipe without a name is called as its file"


def test_overrides_reach_every_depth():
    recipe = load_recipe("glide", ["system.drop=0.3", "network.text.width=32", "schedule.T=50", "start="])
    assert (recipe.options.drop, recipe.network.text.width, recipe.schedule.T) == (0.3, 32, 50)
    assert load_recipe("digits", ["system.level_sampler={name: noisiest, share: .5}"]).options.level_sampler == {
        "name": "noisiest", "share": 0.5,
    }  # fmt: skip
    assert load_recipe("digits", ["training.lr=1e-3"]).training.lr == 1e-3, "YAML reads it as a string"
    assert load_recipe("digits", ["training.ema=[0.9,0.99]"]).training.ema == (0.9, 0.99)
    assert load_recipe("digits", ["training.clip=null"]).training.clip is None


# --- numbers out of range -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=0", "recipe.training.steps must be a whole number >= 1, got 0"),
        ("training.batch=-1", "recipe.training.batch must be a whole number >= 1, got -1"),
        ("training.checkpoint_every=0", "recipe.training.checkpoint_every must be a whole number >= 1, got 0"),
        ("training.accumulate=0", "recipe.training.accumulate must be a whole number >= 1, got 0"),
        ("training.ema=2", "training.ema holds one decay in [0, 1) or more, got [2.0]"),
        ("training.ema=1", "training.ema holds one decay in [0, 1) or more, got [1.0]"),
        ("training.ema=[]", "training.ema holds one decay in [0, 1) or more, got []"),
        ("training.ema=.nan", "training.ema holds one decay in [0, 1) or more"),
        ("training.betas=[0.9]", "training.betas are two numbers in [0, 1), got [0.9]"),
        ("training.clip=-1", "training.clip is a norm > 0 or null, got -1"),
        ("training.clip=0", "training.clip is a norm > 0 or null, got 0"),
        ("training.precision=fp16", "training.precision must be one of no, bf16, got 'fp16'"),
        ("training.sharding=half", "training.sharding must be one of none, full, got 'half'"),
        ("data.bins=0", "recipe.data.bins must be a whole number >= 2, got 0"),
        ("data.bins=1", "recipe.data.bins must be a whole number >= 2, got 1"),
        ("data.size=0", "recipe.data.size must be a whole number >= 1, got 0"),
        ("system.drop=2", "recipe.system.drop must be a number from 0 to 1, got 2"),
        ("schedule.T=0", "recipe.schedule.T must be a whole number >= 1, got 0"),
    ],
)
def test_numbers_out_of_range(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe("digits", [override]).build(empty=True)


def test_a_plan_keeps_its_word_when_it_is_changed():
    plan = TrainingRecipe(steps=3)
    assert dataclasses.replace(plan, ema=(0.0,)).ema == (0.0,)
    with pytest.raises(ValueError, match="steps must be a whole number >= 1, got 0"):
        dataclasses.replace(plan, steps=0)


def test_building_empty_draws_no_random_numbers_and_building_does():
    import torch

    recipe = load_recipe("digits")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    empty = recipe.build(empty=True)
    assert torch.equal(torch.get_rng_state(), before)
    full = recipe.build()
    shapes = lambda system: {name: value.shape for name, value in system.state_dict().items()}
    assert shapes(full) == shapes(empty) and not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["..", "a/../../b", ".", "/tmp/x", '"a\\0b"'])
def test_a_name_does_not_lead_out_of_the_folder_of_runs(name):
    with pytest.raises(ValueError, match="a recipe's name is that of a folder below runs"):
        load_recipe("digits", [f"name={name}"])
    assert load_recipe("digits", ["name=series/one"]).name == "series/one"


def test_attention_that_would_never_act_is_refused():
    with pytest.raises(ValueError, match=r"attention at \[3, 16\] pixels would never act: the levels have \[8, 4\]"):
        load_recipe("digits", ["network.attention=[3, 4, 16]"])
