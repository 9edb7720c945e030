"""A recipe with stages: one command goes through them, each from where the one before ended; it may be stopped."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import begun
from minidiff.training.checkpoint import averaged, export_weights, load_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import publish

TINY = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text(encoding="utf-8"))
STAGES = {
    "coarse": {"training": {"steps": 3, "lr": 0.01}},
    "other": {"system": {"drop": 0.0}, "fresh": ["network.out"], "training": {"steps": 2}},
}


def staged(**changes) -> Recipe:
    values = TINY | {"name": "staged", "before": STAGES} | changes
    return Recipe.from_plain(values | {"training": TINY["training"] | {"steps": 4, "warmup": 0}})


def ended(folder):
    return averaged(load_checkpoint(folder / "last.safetensors")[0], staged().training.ema[0])


def test_a_stage_is_the_recipe_with_its_changes_and_begins_where_the_one_before_it_ended():
    recipe = staged()
    coarse, other, last = recipe.stages("run")
    assert [stage.name for stage in (coarse, other, last)] == ["staged/coarse", "staged/other", "staged"]
    assert [stage.start for stage in (coarse, other, last)] == [
        "",
        "run/coarse/model.safetensors",
        "run/other/model.safetensors",
    ]
    assert (coarse.training.lr, coarse.training.steps, coarse.training.seed) == (0.01, 3, 3)
    assert coarse.options == last.options and other.options.drop == 0 and other.options.predicts == "v"
    assert (coarse.fresh, other.fresh, last.fresh) == ((), ("network.out",), ())
    assert not any(stage.before for stage in (coarse, other, last))
    assert Recipe.from_plain(recipe.to_plain()) == recipe
    plain = load_recipe("digits")
    assert plain.stages("run") == [plain]


def test_stages_are_trainings_by_hand_one_after_another(tmp_path):
    train(staged(), begun, tmp_path / "run", cpu=True, quiet=True)
    start = ""
    for place in ("coarse", "other", "."):
        name = place if place in STAGES else "last"
        by_hand = staged(before={}, start=start) if name == "last" else None
        if by_hand is None:
            values = TINY | {"start": start, "name": name}
            changes = STAGES[name]
            values["system"] = TINY["system"] | changes.get("system", {})
            values["fresh"] = changes.get("fresh", [])
            values["training"] = TINY["training"] | {"warmup": 0} | changes["training"]
            by_hand = Recipe.from_plain(values)
        folder = tmp_path / f"by hand {name}"
        train(by_hand, begun, folder, cpu=True, quiet=True)
        ours, theirs = ended(tmp_path / "run" / place), ended(folder)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
        start = str(folder / "model.safetensors")
        export_weights(theirs, Path(start), {})


def test_an_interrupted_stage_is_finished_and_no_stage_is_trained_twice(tmp_path, monkeypatch):
    train(staged(), begun, tmp_path / "whole", cpu=True, quiet=True)
    folder = tmp_path / "run"

    def stopped(recipe):
        if recipe.name == "staged":
            raise KeyboardInterrupt("in the last stage")
        return begun(recipe)

    with pytest.raises(KeyboardInterrupt):
        train(staged(), stopped, folder, cpu=True, quiet=True)
    files = [folder / stage / "last.safetensors" for stage in STAGES]
    made = [file.stat().st_mtime_ns for file in files]
    train(staged(), begun, folder, cpu=True, quiet=True)
    assert made == [file.stat().st_mtime_ns for file in files]
    # what a stage hands on lies in another folder than the uninterrupted run's, and is the same
    ours, theirs = ended(folder), ended(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_card_tells_the_stages_and_the_time_of_all(tmp_path):
    recipe = staged()
    train(recipe, begun, tmp_path / "run", cpu=True, quiet=True)
    card = publish(recipe, recipe.build(), tmp_path / "run", tmp_path / "published")
    assert [(stage["name"], stage["steps"]) for stage in card["stages"]] == [("coarse", 3), ("other", 2)]
    last = load_checkpoint(tmp_path / "run" / "last.safetensors")[1]["seconds"]
    assert card["steps"] == 4 and card["seconds"] == round(last + sum(stage["seconds"] for stage in card["stages"]))
    assert Recipe.from_plain(json.loads((tmp_path / "published" / "card.json").read_text())["recipe"]) == recipe


def test_a_dry_run_tells_the_cost_of_every_stage(tmp_path):
    path = tmp_path / "staged.yaml"
    path.write_text(yaml.safe_dump(staged().to_plain()), encoding="utf-8")
    said = CliRunner().invoke(main, ["train", str(path), "--dry-run"], catch_exceptions=False).output
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("recipe")] == [
        "staged/coarse",
        "staged/other",
        "staged",
    ]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"coarse": 3}, r"recipe\.before\.coarse must be a mapping, got 3"),
        ({"coarse": {"start": "digits"}}, r"recipe\.before\.coarse: a stage has no start of its own"),
        ({"coarse": {"before": {}, "name": "x"}}, r"recipe\.before\.coarse: a stage has no before and no name"),
        ({"coarse": {"training": {"stepps": 1}}}, r"recipe\.before\.coarse: .*stepps.*did you mean 'steps'"),
        ({"coarse": {"fresh": ["network.out"]}}, r"recipe\.before\.coarse: fresh \['network.out'\] without a start"),
        ({"../coarse": {}}, r"recipe\.before\.\.\./coarse: a recipe's name is that of a folder below runs"),
        (["coarse"], r"recipe\.before must be a mapping, got \['coarse'\]"),
    ],
)
def test_a_stage_that_is_none_is_refused_by_name(before, said):
    with pytest.raises(ValueError, match=said):
        staged(before=before)
