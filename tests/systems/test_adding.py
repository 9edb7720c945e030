"""A system in one file outside the package: trained, published, drawn with guidance and judged by the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minidiff

HERE = Path(__file__).parent
PACKAGE = Path(minidiff.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the system and its recipe, and nothing else; then what was trained and published there."""
    place = tmp_path_factory.mktemp("adding")
    for name in ("toy.py", "toy.yaml"):
        shutil.copy(HERE / name, place)
    run(place, "train", "toy.yaml", "--publish", "published", "--quiet", "--cpu")
    return place


def run(place: Path, *arguments, program: tuple[str, ...] = ("-m", "minidiff")) -> str:
    """What a command printed, in a process of its own that stands in the folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *program, *map(str, arguments)]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def share(place: Path, scale: float) -> float:
    """Share of 200 pictures whose quadrant 2, below on the left, is the brightest."""
    arguments = ["published", "--quadrant", 2, "--scale", scale, "--count", 200, "--steps", 12, "--out", "x.npz"]
    run(place, "sample", *arguments, "--cpu")
    found = np.load(place / "x.npz")
    quadrants = found["arr_0"].reshape(200, 2, 4, 2, 4).sum((2, 4)).reshape(200, 4)
    assert (found["arr_1"] == -1).all(), "a quadrant is no class"
    return float((quadrants.argmax(1) == 2).mean())


def test_it_was_trained_and_published(folder):
    card = json.loads((folder / "published/card.json").read_text())
    assert card["recipe"]["system"]["name"] == "toy" and card["recipe"]["system"]["drop"] == 0.3
    assert (folder / "published/model.safetensors").is_file() and (folder / "runs/toy/last.safetensors").is_file()


def test_guidance_draws_what_is_asked_for(folder):
    """At scale 0 nothing is asked for. The interval of a share of 200 reaches 0.07 to each side."""
    without, guided = share(folder, 0), share(folder, 3)
    assert without < 0.5 and guided > without + 0.15


def test_it_says_what_it_is_told(folder):
    for name in ("toy", "published"):
        text = run(folder, "sample", "--help-system", name)
        assert "--quadrant INTEGER" in text and "quadrant: can be nothing" in text and "probability 0.3" in text
        assert "--label" not in text and "name: toy, ...} with predicts = 'eps'" in text


def test_it_is_judged(folder):
    arguments = ["--features", "digits-classifier-clean", "--images", 140, "--draws", 20, "--steps", 4]
    run(folder, "evaluate", "published", *arguments, "--scale", 2, "--json", "x.json", "--quiet", "--cpu")
    found = json.loads((folder / "x.json").read_text())
    assert [row["what"] for row in found["rows"]] == ["real", "s = 2"] and found["recipe"]["name"] == "toy"
    measures = found["rows"][1]["measures"]
    assert measures["fid"]["value"] > 0 and "class_accuracy" not in measures and found["labels"] == "none"


REFUSED = [
    (["sample", "published", "--quadrat", "2"], "published has no option --quadrat: did you mean '--quadrant'?"),
    (["sample", "published", "--quadrant", "4"], "from 0 to 3"),
    (["train", "toy.yaml", "system.dropp=0.1"], "did you mean 'drop'?"),
]
SEVERAL = """
import json, sys
from click.testing import CliRunner
from minidiff.cli import main
results = [CliRunner().invoke(main, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""


def test_what_it_lacks_is_refused(folder):
    """All in one process, which stands in the folder: starting one takes longer than refusing."""
    asked = json.dumps([arguments for arguments, _ in REFUSED])
    results = json.loads(run(folder, asked, program=("-c", SEVERAL)).splitlines()[-1])
    for (arguments, message), (code, text) in zip(REFUSED, results, strict=True):
        assert code == 2 and message in text and len(text.strip().splitlines()) == 1, (arguments, text)


def test_the_package_does_not_know_it():
    sources = [path for kind in ("py", "yaml") for path in PACKAGE.rglob(f"*.{kind}")]
    words = re.compile(r"\btoy\b|quadrant", re.IGNORECASE)
    assert len(sources) > 100 and not [str(path) for path in sources if words.search(path.read_text("utf-8"))]
