"""``minidiff sample`` and ``minidiff evaluate`` with a system that reads captions, in one process and in two."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from minidiff.systems.zoo import build
from PIL import Image

from minidiff.cli import main
from minidiff.data.captioned import captioned_scenes
from minidiff.data.pack import picture
from minidiff.metrics.sources import load_system
from minidiff.pictures import read_edit
from minidiff.recipes import load_recipe
from minidiff.systems.draw import draw
from minidiff.training.loop import train

TINY = str(Path(__file__).parents[1] / "training/tiny-glide.yaml")
CAPTIONS = ["a small red ring above a blue square", "a star"]
QUICK = ["--steps", 3, "--cpu"]
JUDGED = ["--features", "shapes16-classifier-clean", "--captions", 12, "--again", 6, "--draws", 20, "--quiet"]


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """Short runs: a base, upsamplers that read the same captions, and inpainters of both sizes."""
    folder = tmp_path_factory.mktemp("runs")
    train(load_recipe(TINY), build, folder / "base", cpu=True, quiet=True)
    larger = ["factor=2", "network.size=32", "network.attention=16", "network.in_channels=6"]
    others = {
        "up": ["system=glide_upsampler", *larger],
        "augmented": ["system=glide_cdm", *larger, "augment=0.5", "network.image_level=true"],
        "inpaint": ["system=glide_inpainter", "network.in_channels=7"],
        "inpaint-up": ["system=glide_upsampler_inpainter", *larger, "network.in_channels=10"],
    }
    for name, changes in others.items():
        train(load_recipe(TINY, changes), build, folder / name, cpu=True, quiet=True)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def drawn(path: Path, *arguments) -> tuple[np.ndarray, np.ndarray, dict]:
    result = run("sample", *arguments, *QUICK, "--out", path)
    assert result.exit_code == 0, result.output
    file = np.load(path)
    return file["arr_0"], file["arr_1"], json.loads(path.with_suffix(".json").read_text())


def test_captions_are_drawn_in_turn(systems, tmp_path):
    images, captions, used = drawn(tmp_path / "x.npz", systems / "base", *CAPTIONS, "--count", 5)
    assert images.shape == (5, 16, 16, 3) and captions.tolist() == [0, 1, 0, 1, 0]
    assert used["captions"] == CAPTIONS and used["scale"] == 3 and used["steps"] == 3
    one, _, _ = drawn(tmp_path / "y.npz", systems / "base", CAPTIONS[0], "--count", 3, "--batch", 1)
    assert np.abs(one[[0, 2]].astype(int) - images[[0, 2]]).max() <= 1, "that of its caption, seed and place"
    assert np.abs(one[1].astype(int) - images[1]).max() > 1


def test_scale_one_is_plain(systems, tmp_path):
    plain, _, used = drawn(tmp_path / "x.npz", systems / "base", "a star", "--count", 2, "--scale", 1)
    guided, _, _ = drawn(tmp_path / "y.npz", systems / "base", "a star", "--count", 2)
    assert used["scale"] == 1 and np.abs(plain.astype(int) - guided).max() > 1


def test_upsampling_by_a_system_that_reads_the_same_caption(systems, tmp_path):
    images, _, used = drawn(tmp_path / "x.npz", systems / "base", "a star", "--count", 2, "--upsample", systems / "up")
    assert images.shape == (2, 32, 32, 3) and used["upsamplers"] == [str(systems / "up")]


def test_noise_in_the_small_picture(systems, tmp_path):
    arguments = [systems / "base", "a star", "--count", 2, "--upsample", systems / "augmented"]
    sets = {}
    for level in ((), ("--level", 0), ("--level", 0.4)):
        images, _, used = drawn(tmp_path / "x.npz", *arguments, *level)
        sets[level], expected = images.astype(int), [float(x) for x in level[1:]]
        assert used["levels"] == expected
    plain, zero, noised = sets.values()
    assert (plain == zero).all() and np.abs(noised - plain).max() > 1


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A picture of 64 pixels whose left half is transparent."""
    path = tmp_path_factory.mktemp("edit") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    pixels[..., 3] = 255
    pixels[:, :32, 3] = 0
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_is_edited_in_both_sizes(systems, edited, tmp_path):
    small = [systems / "inpaint", *CAPTIONS, "--count", 3, "--edit", edited]
    for size, more in ((16, []), (32, ["--upsample", systems / "inpaint-up"])):
        images, _, used = drawn(tmp_path / "x.npz", *small, *more)
        known = ((read_edit(edited, size)[0] + 1) * 127.5).round().byte()[0].permute(1, 2, 0).numpy()
        half = size // 2
        assert images.shape == (3, size, size, 3) and used["edit"] == str(edited)
        assert np.abs(images[:, :, half:].astype(int) - known[:, half:]).max() <= 1, "what is known comes back"
        assert np.abs(images[0, :, :half].astype(int) - images[1, :, :half]).max() > 1, "the rest is painted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}"], "name some after it"),
        (["{base}", "a smal ring"], "no word 'smal' here: did you mean 'small'?"),
        (["{base}", "a ring " * 7], "14 words; up to 12"),
        (["{base}", "a ring", "--label", "1"], "--label and --classifier are for systems with classes"),
        (["{base}", "a ring", "--classifier", "digits-classifier"], "for systems with classes"),
        (["{base}", "a ring", "--clip", "digits"], "a CLIP is accepted"),
        (["digits", "a ring"], "reads no captions; choose one with --label"),
        (["digits", "--clip", "digits"], "reads no captions"),
        (["{up}", "a ring"], "--upsample"),
        (["{base}", "a ring", "--upsample", "digits"], "takes upsamplers"),
        (["digits", "--upsample", "{up}"], "told something else"),
        (["{base}", "a ring", "--upsample", "{up}", "--level", "0.1"], "was not trained with noise"),
        (["{base}", "a ring", "--level", "0.1"], "1 are too many"),
        (["{base}", "a ring", "--upsample", "{augmented}", "--level", "0.6"], "from 0 to 0.5"),
        (["{inpaint}", "a ring"], "name it with --edit"),
        (["{base}", "a ring", "--edit", "{picture}"], "--edit is for inpainters"),
        (["{base}", "a ring", "--mask", "{picture}"], "name that with --edit"),
        (["{inpaint}", "a ring", "--edit", "{picture}", "--mask", TINY], "no picture that can be read"),
        (["{inpaint-up}", "a ring", "--edit", "{picture}"], "--upsample"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(systems, edited, arguments, message, tmp_path):
    places = {path.name: path for path in systems.iterdir()} | {"picture": edited}
    result = run("sample", *(a.format(**places) for a in arguments), *QUICK, "--out", tmp_path / "x.npz")
    assert result.exit_code == 2 and message in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def judged(systems, tmp_path_factory):
    """One evaluation at two scales: what it printed and what it wrote."""
    out = tmp_path_factory.mktemp("evaluation") / "x.json"
    result = run("evaluate", systems / "base", *JUDGED, *QUICK, "--scale", 1, "--scale", 4, "--json", out)
    assert result.exit_code == 0, result.output
    return result.output, json.loads(out.read_text())


def test_rows_and_measures(judged):
    _, found = judged
    names = [f"{sheet}, {row}" for sheet in ("heldout", "seen") for row in ("real", "s = 1", "s = 4")]
    assert [row["what"] for row in found["rows"]] == names
    assert [row["scale"] for row in found["rows"]] == [None, 1.0, 4.0] * 2
    expected = {"count", "shape", "color", "binding", "relation", "all", "all_one", "all_two", "diversity"}
    for row in found["rows"]:
        assert row["measures"].keys() == expected, "no distance: 12 captions are too few for 64 features"
        assert all(m["low"] <= m["value"] <= m["high"] for m in row["measures"].values())
    assert found["rows"][0]["measures"]["all"]["value"] > 0.8 > found["rows"][1]["measures"]["all"]["value"]


def test_the_record_says_what_was_asked(judged):
    _, found = judged
    assert found["captions"] == 12 and found["drawn_twice"] == 6 and found["images"] == 18
    assert found["asked"]["heldout"]["all"] == 12 and found["asked"]["heldout"]["binding"] == 6
    assert found["reference"] == {"name": "real pictures of the same scenes captions", "images": 24}
    assert found["recipe"]["name"] == "tiny-glide" and len(found["sha256"]) == 64


def test_the_tables_hold_what_was_measured(judged):
    lines = judged[0].splitlines()
    assert lines[0].split() == ["count", "shape", "colour", "binding", "relation", "all"]
    assert lines[14].split() == ["diversity"] and max(map(len, lines[:-1])) < 120
    assert "no Frechet distance: 64 features take 130 captions" in lines


def test_captions_of_shards(systems, tmp_path):
    """As many pictures as there are captions, each beside its own; here of one file."""
    scenes = captioned_scenes(8, 16, torch.Generator().manual_seed(0))
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for i, text in enumerate(scenes.captions):
            buffer = io.BytesIO()
            picture(scenes.images[i]).save(buffer, "PNG")
            for suffix, content in (("png", buffer.getvalue()), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    out = tmp_path / "x.json"
    result = run("evaluate", systems / "base", *JUDGED[:2], "--reference", tmp_path, *JUDGED[4:], *QUICK, "--json", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert [row["what"] for row in found["rows"]] == ["all, s = 1"] and found["captions"] == 8
    assert found["reference"] == {"name": "real pictures of the same shards captions", "images": 8}
    assert found["rows"][0]["measures"].keys() == {"diversity"}, "the oracle knows scenes, not shards"


def test_a_cascade_is_judged_beside_real_pictures_of_its_size(systems, tmp_path):
    stage = ["--upsample", systems / "augmented", "--level", 0.3]
    result = run("evaluate", systems / "base", *JUDGED, *QUICK, *stage, "--json", tmp_path / "x.json")
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row["measures"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    assert rows["heldout, real"]["all"]["value"] > 0.8 > rows["heldout, s = 1"]["all"]["value"]
    tokens = load_system(str(systems / "base"))[0].tokens(["a star"])
    up = load_system(str(systems / "augmented"))[0]
    ((_, pictures),) = draw(load_system(str(systems / "base"))[0], tokens, stages=[(up, {"steps": 2})], steps=2)
    assert pictures.shape == (1, 3, 32, 32)


def test_two_processes_judge_the_same(judged, systems, tmp_path):
    script = tmp_path / "evaluate.py"
    script.write_text("from minidiff.cli.evaluate import evaluate\n\nevaluate()\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    arguments = [systems / "base", *JUDGED, *QUICK, "--scale", 4, "--json", tmp_path / "two.json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, launch + arguments)], capture_output=True, text=True, timeout=300, env=env)
    assert result.returncode == 0, result.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["versions"]["processes"] == 2 and result.stdout.count("binding") == 1
    one = {row["what"]: row["measures"] for row in judged[1]["rows"]}
    for row in two["rows"]:
        for name, measure in row["measures"].items():
            assert measure["value"] == pytest.approx(one[row["what"]][name]["value"], rel=0.02, abs=0.1), name


def test_processes_share_the_pictures_of_captions(systems):
    base, up = (load_system(str(systems / name))[0] for name in ("base", "up"))
    tokens = base.tokens(CAPTIONS * 2 + CAPTIONS[:1])
    how = {"batch": 2, "steps": 3, "scale": 2.0, "stages": [(up, {"steps": 2})]}
    alone = torch.cat([images for _, images in draw(base, tokens, 0, **how)])
    for rank in range(2):
        for index, images in draw(base, tokens, 0, rank=rank, world=2, **how):
            assert bool((index % 2 == rank).all())
            assert (images - alone[index]).abs().max() < 0.03, "rounding may fall to another of 256 values in between"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}"], "no committed CLIP knows"),
        (["{base}", "--features", "digits"], "has no features"),
        (["{base}", *JUDGED[:2], "--reference", "train"], "shards do not exist: train"),
        (["{base}", "--images", "100"], "a glide system, which --images is not for"),
        (["{base}", "--classifier", "digits-classifier"], "--classifier is not for"),
        (["{up}"], "is a glide_upsampler"),
        (["digits", "--captions", "10"], "a class_conditional system, which --captions is not for"),
        (["digits", "--clip", "digits"], "--clip is not for"),
    ],
)
def test_bad_evaluations(systems, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("minidiff.metrics.captions.checkpoints", lambda: ["digits", "shapes16-classifier-clean"])
    places = {name: systems / name for name in ("base", "up")}
    result = run("evaluate", *(a.format(**places) for a in arguments), "--quiet", "--cpu")
    assert result.exit_code == 2 and message in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1
