"""``minidiff evaluate``: what it prints and writes, in one process and in two."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import OneLine
from minidiff.cli.evaluate import evaluate
from minidiff.data.digits import digits
from minidiff.pixels import to_uint8
from minidiff.recipes import load_recipe
from minidiff.store import begun, weights_path
from minidiff.training.loop import train

TINY = str(Path(__file__).parents[1] / "training/tiny.yaml")
QUICK = ("--images", 140, "--steps", 8, "--draws", 20, "--quiet", "--cpu")
MEASURES = {"fid", "fid_debiased", "kid", "inception_score", "precision", "recall", "class_accuracy"}


def run(*args):
    return CliRunner().invoke(OneLine("minidiff", commands=[evaluate]), [str(a) for a in args])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """One evaluation of the digits at two scales, what it printed and what it wrote."""
    out = tmp_path_factory.mktemp("evaluation") / "digits.json"
    result = run("evaluate", "digits", "--scale", 1, "--scale", 6, *QUICK, "--json", out)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(out.read_text())


def test_every_row_has_every_measure_inside_its_interval(judged):
    _, found = judged
    assert [row["scale"] for row in found["rows"]] == [None, 1.0, 6.0]
    for row in found["rows"]:
        assert row["measures"].keys() == MEASURES
        assert all(m["low"] <= m["value"] <= m["high"] for m in row["measures"].values())


def test_guidance_trades_recall_for_precision(judged):
    real, plain, guided = (row["measures"] for row in judged[1]["rows"])
    assert guided["recall"]["value"] < plain["recall"]["value"]
    assert guided["precision"]["value"] >= plain["precision"]["value"]
    assert real["class_accuracy"]["low"] > 0.9


def test_the_record_holds_what_it_takes_to_measure_again(judged):
    _, found = judged
    assert found["options"]["seed"] == 0 and found["options"]["steps"] == ["8"] and found["images"] == 140
    assert found["reference"] == {"name": "digits heldout", "images": len(digits("heldout")[0]), "left_out": 0}
    assert found["features"]["name"] == "digits-classifier-clean" and len(found["features"]["sha256"]) == 64
    assert found["recipe"]["name"] == "digits" and len(found["sha256"]) == 64
    assert {"minidiff", "torch", "python", "device", "processes"} <= found["versions"].keys()


def test_the_card_of_a_published_folder_keeps_what_was_found(judged, tmp_path):
    """The same weights by their folder: the same numbers, beside all that the card said before."""
    copy = shutil.copytree(weights_path("digits").parent, tmp_path / "mine")
    before = json.loads((copy / "card.json").read_text())
    result = run("evaluate", copy, "--scale", 1, *QUICK, "--json", tmp_path / "out.json", "--card")
    assert result.exit_code == 0, result.output
    after = json.loads((copy / "card.json").read_text())
    measured = [row["measures"] for row in after.pop("evaluation")["rows"]]
    before.pop("evaluation", None)
    assert after == before and measured == [row["measures"] for row in judged[1]["rows"][:2]]


def test_the_table_is_aligned(judged):
    lines = judged[0].splitlines()
    assert lines[0].split()[0] == "FID" and lines[1].startswith("real") and lines[3].startswith("s = 1")
    assert len({len(line) for line in lines[:7]}) == 1, "every column ends where its heading ends"
    assert max(map(len, lines[:7])) < 120


def test_two_processes_measure_the_same(judged, tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("from minidiff.cli.evaluate import evaluate\n\nevaluate()\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    arguments = ["digits", "--scale", "1", *map(str, QUICK), "--json", str(tmp_path / "two.json")]
    result = subprocess.run([*launch, *arguments], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["versions"]["processes"] == 2 and result.stdout.count("FID - bias") == 1
    for one, other in zip(judged[1]["rows"][:2], two["rows"], strict=True):
        for name, measure in one["measures"].items():
            assert other["measures"][name]["value"] == pytest.approx(measure["value"], rel=0.02, abs=0.01), name


def test_the_bound(tmp_path):
    out, folder = tmp_path / "x.json", tmp_path / "run"
    train(load_recipe(TINY, ["training.steps=2", "schedule.T=20"]), begun, folder, True, True)
    result = run("evaluate", folder, *QUICK, "--bits-per-dim", 8, "--json", out)
    assert result.exit_code == 0, result.output
    bits = json.loads(out.read_text())["bits_per_dim"]
    parts = [bits[name]["value"] for name in ("prior", "steps_kl", "decoder")]
    assert bits["total"]["value"] == pytest.approx(sum(parts), rel=1e-5) and bits["steps"] == 20
    assert "bits/dim" in result.output


def test_what_was_published_is_judged_where_nothing_else_is_said(tmp_path):
    folder, published = tmp_path / "run", "sampling={steps: '3', sampler: ancestral, scale: 2.5}"
    recipe = load_recipe(TINY, ["training.steps=1", "system.variance=fixed", "network.out_channels=1", published])
    train(recipe, lambda r: r.build(), folder, cpu=True, quiet=True)
    few, said = ("--images", 140, "--draws", 20, "--quiet", "--cpu", "--json", tmp_path / "x.json"), {}
    for name, options in (("default", ()), ("named", ("--scale", 2.5)), ("two", ("--scale", 0, "--scale", 1))):
        result = run("evaluate", folder, *few, *options)
        assert result.exit_code == 0, result.output
        said[name] = result.output, json.loads((tmp_path / "x.json").read_text())
    rows = {name: [row["scale"] for row in found["rows"]] for name, (_, found) in said.items()}
    assert rows == {"default": [None, 2.5], "named": [None, 2.5], "two": [None, 0, 1]}
    assert said["default"][1]["rows"] == said["named"][1]["rows"]
    assert f"drawn by {folder}: 3 steps, ancestral, s = 2.5" in said["default"][0].splitlines()
    assert f"drawn by {folder}: 3 steps, ancestral" in said["two"][0].splitlines(), "its scales are those of the rows"


def test_a_system_without_labels(tmp_path):
    """By itself it has no accuracy, and its bound is measured all the same; a classifier that guides gives labels."""
    folder, untold = tmp_path / "run", ["system.drop=0", "network.classes=null", "schedule.T=20", "training.steps=2"]
    train(load_recipe(TINY, untold), begun, folder, True, True)
    found = {}
    for name, more in (("alone", ["--bits-per-dim", 4]), ("guided", ["--classifier", "digits-classifier"])):
        result = run("evaluate", folder, *QUICK, *more, "--scale", 1 if name == "alone" else 8, "--json", folder / name)
        assert result.exit_code == 0, result.output
        found[name] = json.loads((folder / name).read_text())
    alone, guided = (found[name]["rows"][1]["measures"] for name in ("alone", "guided"))
    assert MEASURES - alone.keys() == {"class_accuracy"} and guided.keys() == MEASURES
    assert [found[name]["labels"] for name in ("alone", "guided")] == ["none", "each class in turn"]
    assert guided["class_accuracy"]["low"] > 0.1, "a tenth is what chance gives"
    assert found["alone"]["bits_per_dim"]["images"] == 4


def test_an_enlarger_is_judged_at_the_size_that_it_draws(tmp_path):
    """Beside real pictures of that size; the classifier sees both in its own."""
    stage = ("--upsample", "shapes8-16", "--features", "shapes16-classifier-clean", "--steps", 4, "--scale", 2)
    quick = ("--images", 140, "--draws", 20, "--quiet", "--cpu")
    result = run("evaluate", "shapes8", *stage, *quick, "--json", tmp_path / "x.json")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "x.json").read_text())
    drawn = found["rows"][-1]["measures"]
    assert drawn["class_accuracy"]["low"] > 1 / 8 and found["reference"]["name"] == "shapes heldout"


def test_a_set_of_images(tmp_path):
    images, labels = (part[:150] for part in digits("train"))
    np.savez(tmp_path / "real.npz", to_uint8(images).permute(0, 2, 3, 1).numpy(), labels.numpy())
    arguments = ("--features", "digits-classifier-clean", "--draws", 20, "--quiet", "--cpu")
    result = run("evaluate", tmp_path / "real.npz", *arguments, "--json", tmp_path / "x.json")
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["real", "real.npz"] and rows[1]["measures"]["class_accuracy"][
        "value"
    ] > 0.9
    reference = ("--reference", tmp_path / "real.npz", "--json", tmp_path / "y.json")
    assert run("evaluate", tmp_path / "real.npz", *arguments, *reference).exit_code == 0
    (row,) = json.loads((tmp_path / "y.json").read_text())["rows"]
    assert row["measures"]["fid"]["value"] < 1e-4 and row["measures"]["recall"]["value"] == 1


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
JUDGE = ("--features", "digits-classifier-clean", "--draws", 20, "--quiet", "--cpu")


def digit_files(folder, names, count=300):
    """Digits as PNG files in a folder for each class, of these names; their files."""
    images, labels = (part[:count] for part in digits("train"))
    files = [folder / names[label] / f"{i:03d}.png" for i, label in enumerate(labels.tolist())]
    for image, file in zip(to_uint8(images), files, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(file)
    return files


def test_broken_images_are_left_out_and_counted(tmp_path):
    """Half of them broken is the same as half of them there: nothing takes their place, in no number."""
    found = []
    for what in ("broken", "absent"):
        for i, file in enumerate(digit_files(tmp_path / what, "0123456789")):
            if i % 2:
                file.write_bytes(b"no picture") if what == "broken" else file.unlink()
        result = run("evaluate", tmp_path / what, *JUDGE, "--json", tmp_path / "x.json")
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / "x.json").read_text())["rows"][1])
        assert ("(150, 150 broken)" in result.output) == (what == "broken")
    broken, absent = found
    assert (broken["images"], broken["left_out"]) == (150, 150) and (absent["images"], absent["left_out"]) == (150, 0)
    assert broken["measures"]["class_accuracy"] == absent["measures"]["class_accuracy"]
    for name in MEASURES - {"fid_debiased"}:  # whose halves are drawn by the place of an image
        measured = absent["measures"][name]
        assert broken["measures"][name]["value"] == pytest.approx(measured["value"], rel=1e-5), name


def test_folders_are_compared_by_their_names(tmp_path):
    """Some classes are missing: the others keep their numbers. Names the judge does not know are not compared."""
    digit_files(tmp_path / "numbers", "0123456789")
    for label in "02":
        shutil.rmtree(tmp_path / "numbers" / label)
    digit_files(tmp_path / "words", WORDS)
    results = {}
    for what in ("numbers", "words"):
        result = run("evaluate", tmp_path / what, *JUDGE, "--json", tmp_path / "x.json")
        assert result.exit_code == 0, result.output
        results[what] = result.output, json.loads((tmp_path / "x.json").read_text())["rows"][1]["measures"]
    assert results["numbers"][1]["class_accuracy"]["value"] > 0.9 and "not compared" not in results["numbers"][0]
    assert "class_accuracy" not in results["words"][1] and "fid" in results["words"][1]
    assert "not compared: the folders are eight, five, four" in results["words"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digitz"], "did you mean 'digits'"),
        (["digits-classifier"], "draws nothing"),
        (["digits", "--images", "129"], "129 images are too few for 64 features"),
        (["digits", "--features", "shapes16-classifier-clean"], "sees images of 16x16, got 8x8"),
        (["digits", "--features", "digits"], "has no features"),
        (["digits", "--classifier", "digits"], "which has no classifier"),
        (["digits", "--reference", "nowhere"], "nowhere"),
        (["digits", "--steps", "many", "--images", "140"], "ddim25"),
        (["digits", "--scale", "nan", "--images", "140"], "finite"),
        (["digits", "--guide", "adm", "--scale", "2", "--images", "140"], "needs a classifier"),
        (["digits", "--label", "3"], "--label"),
        (["shapes8-16", "--features", "shapes16-classifier-clean"], "name a small picture"),
        (["digits", "--bits-per-dim", "9999"], "held-out images for the bound"),
        (["few.npz"], "--features"),
        (["few.npz", "--features", "digits-classifier-clean"], "5 images are too few"),
        (["wrong.npz", "--features", "digits-classifier-clean"], "1 labels are no classes, 17 say; from 0 to 9 are"),
        (["few.npz", "--features", "digits-classifier-clean", "--images", "6"], "holds 5 images, not 6"),
        (["few.npz", "--features", "digits-classifier-clean", "--scale", "2"], "set of images"),
        (["adm-imagenet64"], "adm-imagenet64"),
        (["digits", "--weights", "nowhere.pt"], "nowhere.pt"),
        (["digits", "--bits-per-dim", "3"], "--bits-per-dim"),
        (["few.npz", "--features", "digits-classifier-clean", "--card"], "no checkpoint"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, monkeypatch, tmp_path):
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", np.zeros((5, 8, 8, 1), np.uint8))
    np.savez("wrong.npz", np.zeros((3, 8, 8, 1), np.uint8), np.array([3, 17, 0]))
    result = run("evaluate", *arguments, "--quiet", "--cpu")
    assert result.exit_code == 2, result.output
    assert message in result.output and len(result.output.strip().splitlines()) == 1
