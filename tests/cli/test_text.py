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
from PIL import Image

from minidiff.cli import main
from minidiff.data.captioned import captioned_scenes
from minidiff.data.pack import picture
from minidiff.guidance import adm, cfg, clip
from minidiff.pictures import read_edit
from minidiff.pixels import to_uint8
from minidiff.random import sample_generators
from minidiff.recipes import load_recipe
from minidiff.sampler import ancestral
from minidiff.store import begun, load
from minidiff.systems.draw import cascade, draw
from minidiff.systems.draw import drawn as in_batches
from minidiff.training.loop import train

TINY = str(Path(__file__).parents[1] / "training/tiny-glide.yaml")
CAPTIONS = ["a small red ring above a blue square", "a star"]
QUICK = ["--steps", 3, "--cpu"]
JUDGED = ["--features", "shapes16-classifier-clean", "--captions", 12, "--again", 6, "--draws", 20, "--quiet"]


@pytest.fixture(scope="module")
def systems(tmp_path_factory):
    """Short runs: a base, upsamplers that read the same captions, and inpainters of both sizes."""
    folder = tmp_path_factory.mktemp("runs")
    larger = ["network.size=32", "data.size=32", "network.attention=16", "network.in_channels=6"]
    up = "predicts: v, drop: 0.2, factor: 2"
    kinds = {
        "base": [],
        "up": [f"system={{name: glide_upsampler, {up}}}", *larger],
        "augmented": [f"system={{name: glide_cdm, {up}, augment: 0.5}}", *larger, "network.image_level=true"],
        "inpaint": ["system={name: glide_inpainter, predicts: v, drop: 0.2}", "network.in_channels=7"],
        "inpaint-up": [f"system={{name: glide_upsampler_inpainter, {up}}}", *larger, "network.in_channels=10"],
    }
    for name, changes in kinds.items():
        train(load_recipe(TINY, changes), begun, folder / name, cpu=True, quiet=True)
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def quick(arguments) -> list:
    """A few steps for the base, and for every system that enlarges."""
    return [*QUICK, *list(arguments).count("--upsample") * QUICK[:2]]


def drawn(path: Path, *arguments) -> tuple[np.ndarray, np.ndarray, dict]:
    result = run("sample", *arguments, *quick(arguments), "--out", path)
    assert result.exit_code == 0, result.output
    file = np.load(path)
    return file["arr_0"], file["arr_1"], json.loads(path.with_suffix(".json").read_text())


def test_captions_are_drawn_in_turn(systems, tmp_path):
    images, captions, used = drawn(tmp_path / "x.npz", systems / "base", *CAPTIONS, "--count", 5)
    assert images.shape == (5, 16, 16, 3) and captions.tolist() == [0, 1, 0, 1, 0]
    assert used["caption"] == CAPTIONS and [(s["scale"], s["steps"]) for s in used["stages"]] == [(3.0, "3")]
    one, _, _ = drawn(tmp_path / "y.npz", systems / "base", CAPTIONS[0], "--count", 3, "--batch", 1)
    assert np.abs(one[[0, 2]].astype(int) - images[[0, 2]]).max() <= 1, "that of its caption, seed and place"
    assert np.abs(one[1].astype(int) - images[1]).max() > 1


def test_scale_one_is_plain(systems, tmp_path):
    plain, _, used = drawn(tmp_path / "x.npz", systems / "base", "a star", "--count", 2, "--scale", 1)
    guided, _, _ = drawn(tmp_path / "y.npz", systems / "base", "a star", "--count", 2)
    assert used["stages"][0]["scale"] == 1 and np.abs(plain.astype(int) - guided).max() > 1


def test_captions_by_the_name_of_their_option(systems, tmp_path):
    named, numbers, _ = drawn(tmp_path / "x.npz", systems / "base", CAPTIONS[0], "--caption", CAPTIONS[1], "--count", 3)
    bare, _, used = drawn(tmp_path / "y.npz", systems / "base", *CAPTIONS, "--count", 3)
    assert np.array_equal(named, bare) and numbers.tolist() == [0, 1, 0] and used["caption"] == CAPTIONS


@pytest.mark.parametrize("guide", ["cfg", "clip", "adm"])
def test_what_is_drawn_is_what_draw_draws(systems, guide, tmp_path):
    critic, captions = load("scenes-clip-noisy"), [CAPTIONS[i % 2] for i in range(3)]
    given = {
        "cfg": {"guide": cfg(2.0)},
        "clip": {"guide": clip(critic, captions, 2.0)},
        "adm": {
            "guide": adm(critic.critic(captions), 2.0),
            "threshold": None,
            "sampler": ancestral("beta"),
        },
    }[guide]
    more = {"levels": 3, "generator": sample_generators(0, range(3)), "caption": captions}
    expected = to_uint8(draw(load(str(systems / "base")), 3, **given, **more)).permute(0, 2, 3, 1).numpy()
    by = [] if guide == "cfg" else ["--clip", "scenes-clip-noisy", "--guide", guide]
    images, _, _ = drawn(tmp_path / "x.npz", systems / "base", *CAPTIONS, "--count", 3, "--scale", 2, *by)
    assert np.array_equal(images, expected)


def test_upsampling_by_a_system_that_reads_the_same_caption(systems, tmp_path):
    images, _, used = drawn(tmp_path / "x.npz", systems / "base", "a star", "--count", 2, "--upsample", systems / "up")
    assert images.shape == (2, 32, 32, 3) and used["upsamplers"] == [str(systems / "up")]


def test_noise_in_the_small_picture(systems, tmp_path):
    arguments = [systems / "base", "a star", "--count", 2, "--upsample", systems / "augmented"]
    sets = {}
    for level in ((), ("--aug-level", 0), ("--aug-level", 0.4)):
        images, _, used = drawn(tmp_path / "x.npz", *arguments, *level)
        sets[level], expected = images.astype(int), [0.0, *(float(x) for x in level[1:] or [0])]
        assert [stage["aug_level"] for stage in used["stages"]] == expected
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
        known = to_uint8(read_edit(edited, size)[0])[0].permute(1, 2, 0).numpy()
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
        (["{base}", "a ring", "--label", "1"], "base has no option --label"),
        (["{base}", "a ring", "--captoin", "a star"], "has no option --captoin: did you mean '--caption'?"),
        (["{base}", "a ring", "--classifier", "digits-classifier"], "a classifier guides systems with classes"),
        (["{base}", "a ring", "--clip", "digits"], "which has no critic"),
        (["digits", "a ring"], "does not read 'a ring': what to draw is said by --label"),
        (["digits", "--clip", "scenes-clip-noisy"], "reads no captions"),
        (["{base}", "a ring", "--guide", "clip"], "'clip' needs a classifier or a CLIP"),
        (["{base}", "a ring", "--guide", "cfg", "--clip", "scenes-clip-noisy"], "takes no clip"),
        (["{base}", "a ring", "--clip", "scenes-clip-noisy", "--classifier", "digits-classifier"], "one guide"),
        (["{up}", "a ring"], "name a small picture with --image, or it as --upsample"),
        (["{base}", "a ring", "--upsample", "digits"], "digits does not enlarge"),
        (["{base}", "a ring", "--upsample", "scenes-clip"], "scenes-clip draws nothing"),
        (["digits", "--upsample", "{up}"], "reads something else"),
        (["{base}", "a ring", "--upsample", "shapes8-16"], "reads something else"),
        (["{base}", "a ring", "--upsample", "{up}", "--upsample", "{up}"], "one stage draws (3, 32, 32)"),
        (["{base}", "a ring", "--upsample", "{up}", "--aug-level", "0.1"], "was trained without noise"),
        (["{base}", "a ring", "--aug-level", "0.1"], "1 are too many"),
        (["{base}", "a ring", "--upsample", "{augmented}", "--aug-level", "0.6"], "from 0 to 0.5"),
        (["{inpaint}", "a ring"], "name it with --edit"),
        (["{base}", "a ring", "--edit", "{picture}"], "base has no option --edit"),
        (["{base}", "a ring", "--mask", "{picture}"], "base has no option --mask"),
        (["{inpaint}", "a ring", "--mask", "{picture}"], "name it with --edit"),
        (["{inpaint}", "a ring", "--edit", "{picture}", "--mask", TINY], "no picture that can be read"),
        (["{inpaint-up}", "a ring", "--edit", "{picture}"], "--upsample"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(systems, edited, arguments, message, tmp_path):
    places = {path.name: path for path in systems.iterdir()} | {"picture": edited}
    result = run("sample", *(a.format(**places) for a in arguments), *quick(arguments), "--out", tmp_path / "x.npz")
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
    assert found["reference"] == {"name": "real pictures of the same scenes captions", "images": 24, "left_out": 0}
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
    assert [row["what"] for row in found["rows"]] == ["all, s = 3"] and found["captions"] == 8, "as sample draws them"
    assert found["reference"] == {"name": "real pictures of the same shards captions", "images": 8, "left_out": 0}
    assert found["rows"][0]["measures"].keys() == {"diversity"}, "the oracle knows scenes, not shards"


def test_a_cascade_is_judged_beside_real_pictures_of_its_size(systems, tmp_path):
    stage = ["--upsample", systems / "augmented", "--aug-level", 0.3]
    result = run("evaluate", systems / "base", *JUDGED, *quick(stage), *stage, "--json", tmp_path / "x.json")
    assert result.exit_code == 0, result.output
    rows = {row["what"]: row["measures"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    assert rows["heldout, real"]["all"]["value"] > 0.8 > rows["heldout, s = 3"]["all"]["value"]


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
    base, up = (load(str(systems / name)) for name in ("base", "up"))
    values = base.read({"caption": CAPTIONS * 2 + CAPTIONS[:1]})
    how = {"guide": cfg(2.0), "levels": 3}
    stages = [(base, lambda mine: how), (up, lambda mine: {"levels": 2})]
    alone = torch.cat([images for _, images in in_batches(stages, values, 5, batch=2)])
    for rank in range(2):
        for index, images in in_batches(stages, values, 5, batch=2, rank=rank, world=2):
            assert bool((index % 2 == rank).all())
            assert (images - alone[index]).abs().max() < 0.03, "rounding may fall to another of 256 values in between"
    one = cascade([(base, how), (up, {"levels": 2})], 1, sample_generators(0, [4]), caption=CAPTIONS[0])
    assert (one[0] - alone[4]).abs().max() < 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{base}"], "no committed CLIP knows"),
        (["{base}", "--features", "digits"], "has no features"),
        (["{base}", *JUDGED[:2], "--reference", "train"], "shards do not exist: train"),
        (["{base}", "--images", "100"], "is judged by caption, which --images is not for"),
        (["{base}", "--classifier", "digits-classifier"], "a classifier guides systems with classes"),
        (["{up}", *JUDGED[:2], "--captions", "4"], "this system enlarges"),
        (["digits", "--captions", "10"], "digits is judged by class, which --captions is not for"),
        (["digits", "--clip", "scenes-clip-noisy"], "reads no captions"),
    ],
)
def test_bad_evaluations(systems, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("minidiff.metrics.embedders.checkpoints", lambda: ["digits", "shapes16-classifier-clean"])
    places = {name: systems / name for name in ("base", "up")}
    result = run("evaluate", *(a.format(**places) for a in arguments), "--quiet", "--cpu")
    assert result.exit_code == 2 and message in result.output, result.output
    assert len(result.output.strip().splitlines()) == 1
