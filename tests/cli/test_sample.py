"""``minidiff sample``: what is drawn is what ``draw`` draws, from one process and from two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.guidance import adm, cfg, classifier
from minidiff.pictures import read_picture
from minidiff.pixels import to_uint8
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral, ddim, heun, interpolated
from minidiff.store import begun, load
from minidiff.systems.draw import cascade, draw
from minidiff.training.loop import train

TINY = str(Path(__file__).parents[1] / "training/tiny.yaml")
ARGUMENTS = ["sample", "digits", "--count", "6", "--steps", "2", "--scale", "2", "--batch", "2", "--cpu"]
LABELS = torch.tensor([3, 7, 3, 7])
TOLD = ["--label", 3, "--label", 7, "--count", 4, "--cpu"]
GUIDED = ["--classifier", "digits-classifier", "--scale", 2]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def drawn(path, *arguments) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pictures, their numbers, and the numbers used."""
    result = run("sample", *arguments, "--out", path)
    assert result.exit_code == 0, result.output
    file = np.load(path)
    return file["arr_0"], file["arr_1"], json.loads(path.with_suffix(".json").read_text())


def pixels(images: torch.Tensor) -> np.ndarray:
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """Short runs of the tiny system: with a learned variance, with a fixed one, and told nothing."""
    folder, kinds = tmp_path_factory.mktemp("runs"), {
        "learned": [],
        "fixed": ["system.variance=fixed", "network.out_channels=1"],
        "untold": ["system.drop=0", "network.classes=null"],
    }  # fmt: skip
    for name, changes in kinds.items():
        train(load_recipe(TINY, ["training.steps=2", *changes]), begun, folder / name, cpu=True, quiet=True)
    return folder


@pytest.mark.parametrize("variance", ["learned", "fixed"])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--steps", 3, "--scale", 2], lambda log_prob, _: {"guide": cfg(2.0), "levels": 3}),
        (["--steps", "ddim5"], lambda log_prob, _: {"levels": "ddim5"}),
        (["--steps", 3, "--sampler", "heun"], lambda log_prob, _: {"levels": 3, "sampler": heun()}),
        (["--steps", 3, "--temperature", 0.5], lambda log_prob, _: {"levels": 3, "temperature": 0.5}),
        (
            ["--steps", 3, "--sampler", "ancestral"],
            lambda log_prob, fixed: {"levels": 3, "sampler": ancestral("beta_tilde" if fixed else "learned")},
        ),
        (
            ["--steps", 3, "--sampler", "ancestral", "--gamma", 0.3],
            lambda log_prob, _: {"levels": 3, "sampler": interpolated(0.3)},
        ),
        (["--steps", 3, *GUIDED], lambda log_prob, _: {"guide": classifier(log_prob, 2.0), "levels": 3}),
        (
            ["--steps", 3, *GUIDED, "--guide", "adm"],
            lambda log_prob, fixed: {
                "guide": adm(log_prob, 2.0),
                "threshold": None,
                "sampler": ancestral("beta" if fixed else "learned"),
                "levels": "3",
            },
        ),
        (
            ["--steps", "ddim5", *GUIDED, "--guide", "adm"],
            lambda log_prob, _: {"guide": adm(log_prob, 2.0, ode=True), "threshold": None, "levels": "ddim5"},
        ),
        (
            ["--steps", "3", *GUIDED, "--guide", "adm", "--sampler", "ddim"],
            lambda log_prob, _: {
                "guide": adm(log_prob, 2.0, ode=True),
                "threshold": None,
                "sampler": ddim(),
                "levels": 3,
            },
        ),
    ],
    ids=[
        "cfg", "spacing", "heun", "temperature", "ancestral", "gamma", "classifier", "adm", "adm ddim5", "adm by ddim",
    ],
)  # fmt: skip
def test_what_is_drawn_is_what_draw_draws(systems, variance, arguments, options, tmp_path):
    system, guide = load(str(systems / variance)), load("digits-classifier")
    given = options(guide.classifier(LABELS), variance == "fixed")
    expected = draw(system, 4, generator=sample_generators(0, range(4)), label=LABELS, **given)
    images, numbers, _ = drawn(tmp_path / "x.npz", systems / variance, *TOLD, *arguments)
    assert np.array_equal(images, pixels(expected)) and numbers.tolist() == LABELS.tolist()


def test_a_classifier_gives_labels_to_a_system_that_is_told_none(systems, tmp_path):
    images, numbers, used = drawn(tmp_path / "x.npz", systems / "untold", *TOLD, *GUIDED, "--steps", 3)
    log_prob = load("digits-classifier").classifier(LABELS)
    how = {"guide": classifier(log_prob, 2.0), "levels": 3, "generator": sample_generators(0, range(4))}
    assert np.array_equal(images, pixels(draw(load(str(systems / "untold")), 4, **how)))
    assert numbers.tolist() == LABELS.tolist() and used["label"] == [3, 7]
    _, numbers, _ = drawn(tmp_path / "y.npz", systems / "untold", *TOLD[4:], "--steps", 3)
    assert numbers.tolist() == [-1] * 4, "nobody says what these are"
    refused = run("sample", systems / "untold", *TOLD, "--steps", 3, "--out", tmp_path / "z.npz")
    assert refused.exit_code == 2 and "has no option --label" in refused.output


def test_labels_stand_in_the_file(tmp_path):
    _, numbers, used = drawn(tmp_path / "x.npz", "digits", "--count", 12, "--steps", 1, "--cpu")
    assert numbers.tolist() == [*range(10), 0, 1], "all classes in turn" and "label" not in used


def test_image_i_depends_on_the_seed_and_i_alone(tmp_path):
    sets = []
    for name, count, batch, seed in (("a", 6, 6, 0), ("b", 4, 1, 0), ("c", 4, 4, 1)):
        more = ["--count", count, "--batch", batch, "--seed", seed]
        sets.append(drawn(tmp_path / f"{name}.npz", *ARGUMENTS[1:], *more)[0].astype(int))
    whole, alone, other = sets
    assert np.abs(whole[:4] - alone).max() <= 1, "equal but for the order of sums"
    assert (np.abs(whole[:4] - other).max((1, 2, 3)) > 1).all()


def test_two_processes_draw_the_images_of_one(tmp_path):
    result = CliRunner().invoke(main, [*ARGUMENTS, "--out", str(tmp_path / "one.npz")])
    assert result.exit_code == 0, result.output
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "minidiff", *ARGUMENTS, "--out", str(tmp_path / "two.npz")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("6 images") == 1, "the first process reports, alone"
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one["arr_0"].shape == (6, 8, 8, 1) and one["arr_0"].dtype == np.uint8
    assert np.array_equal(one["arr_1"], np.arange(6)) and np.array_equal(two["arr_1"], one["arr_1"])
    assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1, "equal but for the order of sums"


def test_a_cascade_is_told_the_same(tmp_path):
    arguments = ["shapes8", "--upsample", "shapes8-16", "--steps", 2, "--steps", 2, *TOLD, "--scale", 3]
    base, up = load("shapes8"), load("shapes8-16")
    for level in (0.0, 0.3):
        stages = [(base, {"guide": cfg(3.0), "levels": 2}), (up, {"levels": 2, "aug_level": level})]
        expected = cascade(stages, 4, sample_generators(0, range(4)), label=LABELS)
        images, numbers, used = drawn(tmp_path / "x.npz", *arguments, "--aug-level", level)
        assert np.array_equal(images, pixels(expected)) and numbers.tolist() == LABELS.tolist()
        assert used["stages"][1]["aug_level"] == level and used["upsamplers"] == ["shapes8-16"]


@pytest.fixture
def picture(tmp_path):
    """A picture of 64 pixels in a file."""
    colours = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(colours).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_picture_is_enlarged(picture, tmp_path):
    up, small = load("shapes8-16"), read_picture(picture, 8)[None]
    images, numbers, used = drawn(tmp_path / "x.npz", "shapes8-16", *TOLD[:2], *TOLD[4:], "--image", picture)
    expected = draw(up, 4, low_res=small, label=3, generator=sample_generators(0, range(4)))
    assert np.array_equal(images, pixels(expected)) and numbers.tolist() == [3] * 4
    assert used["image"] == str(picture)
    reduced = up.part("low_res").downsample(expected)
    assert (reduced - small).abs().mean() < (reduced + small).abs().mean(), "the picture, not its negative"


def test_a_coloured_picture_is_enlarged_in_grey(picture, tmp_path):
    larger = ["system={name: upsampler, predicts: v, factor: 2}", "network.in_channels=2", "network.out_channels=1"]
    recipe = load_recipe(TINY, [*larger, "network.classes=null", "training.steps=1"])
    train(recipe, begun, tmp_path / "run", cpu=True, quiet=True)
    images, _, _ = drawn(tmp_path / "x.npz", tmp_path / "run", "--image", picture, "--count", 2, "--steps", 2)
    small = read_picture(picture, 4)[None].mean(1, keepdim=True)
    how = {"levels": 2, "generator": sample_generators(0, range(2))}
    assert np.array_equal(images, pixels(draw(load(str(tmp_path / "run")), 2, low_res=small, **how)))


def test_other_files_and_unknown_presets_are_refused(tmp_path):
    for more, message in (
        (["--out", str(tmp_path / "x.gif")], ".png or .npz"),
        (["--steps", "many"], "steps"),
        (["--weights", __file__], "no preset 'digits'"),
        (["--label", "3", "--image", __file__], "digits has no option --image"),
    ):
        result = CliRunner().invoke(main, [*ARGUMENTS, *more])
        assert result.exit_code == 2 and message in result.output, result.output
        assert result.output.count("\n") == 1
    refused = run("sample", "shapes8-16", "--image", __file__, "--cpu", "--out", tmp_path / "x.npz")
    assert refused.exit_code == 2 and "no picture that can be read" in refused.output
    assert not list(tmp_path.iterdir())
