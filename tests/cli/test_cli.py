"""The command line: what it writes, and one line with exit code 2 for every bad use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main

TINY = str(Path(__file__).parents[1] / "training/tiny.yaml")


def run(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_sample_writes_a_grid_and_the_numbers(tmp_path):
    out = tmp_path / "a new folder/seven.png"
    result = run("sample", "digits", "--label", 7, "--scale", 3, "--steps", 4, "--count", 9, "--out", out)
    assert result.exit_code == 0, result.output
    used = json.loads(out.with_suffix(".json").read_text())
    assert (used["label"], used["count"]) == ([7], 9)
    assert [(s["system"], s["scale"], s["steps"]) for s in used["stages"]] == [("digits", 3.0, "4")]
    width, height = Image.open(out).size
    assert width == height and width >= 300


def test_an_image_depends_on_the_seed_and_its_index_alone(tmp_path):
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    for out, count in ((few, 1), (many, 2)):
        assert run("sample", "digits", "--label", 3, "--steps", 3, "--count", count, "--out", out).exit_code == 0
    small, first = Image.open(few), Image.open(many)
    unit = small.resize((8, 8), Image.Resampling.NEAREST)
    scale = first.height // 8
    other = first.crop((0, 0, 8 * scale, 8 * scale)).resize((8, 8), Image.Resampling.NEAREST)
    difference = max(abs(a - b) for a, b in zip(unit.tobytes(), other.tobytes(), strict=True))
    assert difference <= 1, "convolutions may round differently in another batch, by one grey value at most"


def test_classifier_guided_sampling(tmp_path):
    out = tmp_path / "x.png"
    arguments = ["sample", "digits", "--label", 3, "--steps", 3, "--count", 2, "--out", out]
    assert run(*arguments, "--classifier", "digits-classifier").exit_code == 0
    assert out.exists()


def test_train_publishes(tmp_path):
    result = run(
        "train", TINY, "training.steps=2", "--out", tmp_path / "run", "--publish", tmp_path / "p", "--quiet", "--cpu"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "p/card.json").read_text())["steps"] == 2


def test_info_names_the_checkpoints():
    result = run("info")
    assert result.exit_code == 0 and "checkpoint digits:" in result.output and "recipes: " in result.output


def test_claims_lists_records(tmp_path):
    result = run("claims", "--records", tmp_path)
    assert result.exit_code == 0 and "0 claims" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampel"], "sampel"),
        (["sample", "digit"], "did you mean 'digits'"),
        (["sample", "digits", "--label", "12"], "from -1 to 9"),
        (["sample", "digits", "--steps", "0"], "1 to 1000"),
        (["sample", "digits", "--steps", "1001"], "1 to 1000"),
        (["sample", "digits", "--scale", "nan"], "finite"),
        (["sample", "digits", "--scale", "large"], "not a valid float"),
        (["sample", "digits", "--steps", "2", "--out", "picture.jpg"], ".png"),
        (["sample", "digits", "--steps", "\u00b2"], "steps must be a number"),
        (["sample", "digits", "--temperature", "nan"], "a finite number is accepted"),
        (["sample", "digits", "--out", f"{__file__}/x.png"], "cannot be written"),
        (["train", "digits", "network.channels=0"], "network.channels must be a whole number >= 1"),
        (["train", "digits", "network.size=0"], "network.size must be a whole number >= 1"),
        (["sample", "digits-classifier"], "draws nothing"),
        (["sample", "digits", "--classifier", "digits"], "is a class_conditional, which has no classifier"),
        (["sample", "digits", "--lable", "3"], "digits has no option --lable: did you mean '--label'?"),
        (["sample", "digits", "--scal", "3"], "digits has no option --scal: did you mean '--scale'?"),
        (["sample", "digits", "--captoin", "a ring"], "digits has no option --captoin: did you mean '--count'?"),
        (["sample", "digits", "--label", "seven"], "no class 'seven': known: 0, 1, 2"),
        (["sample", "digits", "seven"], "digits does not read 'seven': what to draw is said by --label"),
        (["sample", "--label", "3", "digits"], "the name of the system comes first"),
        (["sample", "digits", "--guide", "adm"], "'adm' needs a classifier or a CLIP"),
        (["sample", "digits", "--guide", "classifier"], "'classifier' needs a classifier or a CLIP"),
        (["sample", "digits", "--guide", "cfg", "--classifier", "digits-classifier"], "takes no classifier"),
        (["sample", "digits", "--guide", "clip", "--classifier", "digits-classifier"], "'clip' needs"),
        (["sample", "digits", "--label", "-1", "--classifier", "digits-classifier"], "from 0 to 9"),
        (["sample", "digits", "--aug-level", "0.1"], "1 are too many"),
        (["sample", "digits", "--upsample", "digits-classifier"], "digits-classifier draws nothing"),
        (["sample", "digits", "--upsample", "digits"], "digits does not enlarge"),
        (["sample", "digits", "--upsample", "shapes8-16"], "shapes8-16 reads something else"),
        (["sample", "shapes8", "--upsample", "shapes8-16", "--aug-level", "0.6"], "with noise from 0 to 0.5"),
        (["sample", "shapes8", "--upsample", "shapes8-16-plain", "--aug-level", "0.1"], "without noise"),
        (["sample", "shapes8-16"], "name a small picture with --image"),
        (["sample", "--help-system", "digitz"], "unknown system 'digitz'"),
        (["train", "digitz"], "did you mean 'digits'"),
        (["train", "digits", "training.stepz=1"], "did you mean 'steps'"),
        (["grade"], "PATHS"),
        (["grade", "nowhere"], "nowhere"),
        (["claims"], "--records"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, monkeypatch, tmp_path):
    monkeypatch.delenv("MINIDIFF_RECORDS", raising=False)
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "sample", "grade", "claims"])
def test_help_has_examples(command):
    result = run(command, "--help")
    assert result.exit_code == 0 and "Examples:" in result.output


def test_python_dash_m():
    result = subprocess.run([sys.executable, "-m", "minidiff", "--version"], capture_output=True, text=True)
    assert result.returncode == 0 and "minidiff" in result.stdout + result.stderr


def test_presets_are_listed_with_their_parameters():
    lines = run("info", "--presets").output.splitlines()
    assert any(line.split()[:3] == ["adm-imagenet64", "295.90", "M"] for line in lines)
    assert any(line.split()[:3] == ["adm-classifier-128", "42.57", "M"] for line in lines)
    assert len(lines) >= 14


def test_download_fetches_by_name(tmp_path, monkeypatch):
    from minidiff import pretrained
    from minidiff.download import Downloaded

    asked = []
    fetched = lambda url, target, **options: asked.append(url) or Downloaded(target, 5, "its size is right")
    monkeypatch.setattr(pretrained, "fetch", fetched)
    result = run("download", "adm-imagenet64", "--out", tmp_path)
    assert result.exit_code == 0 and "its size is right" in result.output
    assert asked[0].endswith("64x64_diffusion.pt")
    refused = run("download", "adm-imagenet65", "--out", tmp_path)
    assert refused.exit_code == 2 and "adm-imagenet64" in refused.output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", ["digits: a class_conditional", "label: can be nothing", "probability 0.15", "--label CLASS"]),
        ("glide-inpaint", ["--caption TEXT", "--edit FILE", "--mask FILE", "known: always needed", "drop = 0.0"]),
        ("sr3-16-128", ["--image FILE", "low_res: always needed"]),
        ("upsampler", ["In a recipe: system: {name: upsampler, ...} with", "factor = 4"]),
        ("digits-classifier", ["noise_aware = True"]),
        (TINY, ["tiny: a class_conditional", "--label INTEGER"]),
    ],
)
def test_what_a_system_is_told(name, expected):
    """Of checkpoints, of recipes that nobody trained, and of the bare name of a system."""
    result = run("sample", "--help-system", name)
    assert result.exit_code == 0 and all(text in result.output for text in expected), result.output


def test_the_help_is_that_of_the_options():
    assert "--label CLASS" not in run("sample", "--help").output, "options of systems are their own"
    assert "--label CLASS" not in run("sample", "--help-system", "glide").output


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_says_what_to_lower(error, monkeypatch):
    def too_large(*args, **kwargs):
        raise error

    monkeypatch.setattr("minidiff.recipes.load_recipe", too_large)
    result = run("train", "digits")
    assert result.exit_code == 1 and "lower --batch" in result.output and len(result.output.splitlines()) == 1


def test_other_faults_are_not_taken_for_it(monkeypatch):
    monkeypatch.setattr("minidiff.recipes.load_recipe", lambda *args: torch.ones(2) @ torch.ones(3))
    assert isinstance(run("train", "digits").exception, RuntimeError)


@pytest.mark.parametrize("device", ["nosuch", "cuda:99", "meta"])
def test_a_device_that_is_not_here(device, tmp_path):
    result = run("data", "embed", tmp_path, "digits-classifier-clean", tmp_path / "out", "--device", device)
    assert result.exit_code == 2 and f"there is no device {device!r} here; cpu" in result.output
