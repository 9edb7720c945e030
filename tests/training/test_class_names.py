"""A network knows what its classes are called: on its card, in its run, when it draws and when it is judged."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.data.sets import require_names
from minidiff.metrics.drawing import Drawing
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import card, load
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import publish

TINY = str(Path(__file__).parent / "tiny.yaml")
COLOUR = ["network.in_channels=3", "network.out_channels=6", "network.channel_mult=[1]", "network.attention=[]"]


def pictures(folder: Path, names: tuple[str, ...]) -> Path:
    for i in range(4 * len(names)):
        for part in ("train", "test"):
            place = folder / part / names[i % len(names)]
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * i, 0, 255)).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A system that learnt ant and bee, in a folder with its run and its pictures."""
    folder = tmp_path_factory.mktemp("named")
    pictures(folder / "set", ("ant", "bee"))
    recipe = load_recipe(TINY, ["data.name=folder", f"data.path={folder / 'set'}", "training.steps=2", *COLOUR])
    train(recipe, Recipe.build, folder / "run", cpu=True, quiet=True)
    publish(recipe, recipe.build(), folder / "run", folder / "out")
    return folder, recipe


def test_card_and_run_say_the_names(published):
    folder, _ = published
    assert card(str(folder / "out"))["classes"] == ["ant", "bee"]
    assert load_checkpoint(folder / "run/last.safetensors")[1]["classes"] == ["ant", "bee"]
    assert load(str(folder / "out")).class_names == load(str(folder / "run")).class_names == ("ant", "bee")
    assert load("digits").class_names == tuple("0123456789"), "an older card of a set whose classes never change"


def test_held_out_data_of_other_names_are_not_published(published, tmp_path):
    folder, _ = published
    moved = tmp_path / "set"
    pictures(moved, ("ape", "bee"))
    other = load_recipe(TINY, ["data.name=folder", f"data.path={moved}", "training.steps=2", *COLOUR])
    with pytest.raises(ValueError, match=r"class 0 of the held-out data is 'ape', and .*run learnt it as 'ant'"):
        publish(other, other.build(), folder / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("found", "known", "message"),
    [
        (("a", "c"), ("a", "b"), "class 1 of x is 'c', and y learnt it as 'b'"),
        (("a",), ("a", "b"), "class 1 of x is none, and y learnt it as 'b'"),
        (("a", "b", "c"), ("a", "b"), "class 2 of x is 'c', and y learnt it as none"),
        (("b", "a"), ("a", "b"), "class 0 of x is 'b'"),
    ],
)
def test_the_first_class_that_differs_is_named(found, known, message):
    with pytest.raises(ValueError, match=message):
        require_names(found, known, "x", "y")
    require_names(known, known, "x", "y")
    require_names((), known, "x", "y")
    require_names(found, (), "x", "y")


def sample(folder, *arguments):
    command = ["sample", str(folder / "out"), "--count", "2", "--steps", "2", "--cpu", *map(str, arguments)]
    return CliRunner().invoke(main, command)


def test_classes_are_drawn_by_name_or_number(published, tmp_path):
    folder, _ = published
    said = {}
    for label in ("bee", "1"):
        result = sample(folder, "--label", label, "--out", tmp_path / f"{label}.png")
        assert result.exit_code == 0, result.output
        said[label] = json.loads((tmp_path / f"{label}.json").read_text(encoding="utf-8"))
        assert said[label]["label"] == [1] and said[label]["classes"] == {"1": "bee"}
    assert (tmp_path / "bee.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    result = sample(folder, "--label", "beee", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "no class 'beee': did you mean 'bee'?" in result.output


@pytest.fixture(scope="module")
def strangers(published):
    """A classifier of as many classes, whose folders were called otherwise."""
    folder, _ = published
    pictures(folder / "others", ("bee", "cow"))
    changes = ["data.name=folder", f"data.path={folder / 'others'}", "data.bins=256", "training.steps=2"]
    changes += ["training.batch=4", "network.in_channels=3", "network.channels=8", "network.head_channels=8"]
    recipe = load_recipe("digits-classifier-clean", changes)
    train(recipe, Recipe.build, folder / "judge", cpu=True, quiet=True)
    return folder / "judge"


def test_a_guide_that_calls_its_classes_otherwise_is_refused(published, strangers, tmp_path):
    folder, _ = published
    with pytest.raises(ValueError, match=r"class 0 of the classifier is 'bee', and .*out learnt it as 'ant'"):
        Drawing([load(str(folder / "out"))], classifier=load(str(strangers)), names=[str(folder / "out")])
    result = sample(folder, "--classifier", strangers, "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "class 0 of the classifier is 'bee'" in result.output
    same = load(str(strangers))
    same.class_names = ("ant", "bee")
    Drawing([load(str(folder / "out"))], classifier=same)


def evaluate(folder, *arguments):
    few = ["--images", "40", "--draws", "20", "--steps", "2", "--quiet", "--cpu"]
    return CliRunner().invoke(main, ["evaluate", str(folder / "out"), *few, *map(str, arguments)])


def test_a_judge_of_other_names_does_not_count_accuracy_and_changed_data_are_refused(published, strangers, tmp_path):
    folder, _ = published
    for part in ("train", "test"):  # as many as features of a judge ask for
        for i in range(40):
            for name in ("ant", "bee"):
                Image.new("RGB", (8, 8), (3 * i, 9, 0)).save(folder / "set" / part / name / f"more{i}.png")
    out = tmp_path / "x.json"
    how = ["--features", strangers, "--json", out]
    result = evaluate(folder, *how)
    assert result.exit_code == 0, result.output
    assert "not compared" in result.output
    assert "class_accuracy" not in json.loads(out.read_text(encoding="utf-8"))["rows"][1]["measures"]
    for part in ("train", "test"):
        shutil.move(folder / "set" / part / "ant", folder / "set" / part / "wasp")
    result = evaluate(folder, *how)
    assert result.exit_code == 2 and "class 0 of folder heldout is 'bee'" in result.output, result.output
    assert "learnt it as 'ant'" in result.output


def test_a_card_whose_classes_are_no_names(published, tmp_path):
    folder, _ = published
    for name in ("card.json", "model.safetensors"):
        shutil.copy(folder / "out" / name, tmp_path / name)
    described = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    (tmp_path / "card.json").write_text(json.dumps(described | {"classes": "ant"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"card\.json: classes are a list of names, got 'ant'"):
        load(str(tmp_path))
