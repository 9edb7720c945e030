"""The gate over imports, and the imports that it finds wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tools import arrows

CLEAN = {
    "__init__": "from minidiff.systems.zoo import load",
    "__main__": "from minidiff.cli import main",
    "cli": "import minidiff\nfrom minidiff.metrics.quality import score",
    "metrics/quality": "from minidiff.systems.zoo import load\nfrom minidiff import sampler",
    "systems/zoo": "from minidiff.systems.glide import Glide\nfrom minidiff.recipes import read",
    "systems/glide": "from . import upsampler\nfrom ..models.unet import UNet",
    "systems/upsampler": "import minidiff.schedule",
    "training/loop": "from minidiff.data.digits import digits\nfrom minidiff.recipes import read",
    "recipes/__init__": "from minidiff.models.unet import UNet",
    "data/digits": "import torch\n\n\ndef test():\n    import pytest",
    "models/unet": "from minidiff.denoiser import Denoiser",
    "sampler": "from minidiff.denoiser import Denoiser",
    "denoiser": "from minidiff.prediction import Prediction",
    "prediction": "from minidiff.schedule import NoiseLevel",
    "schedule": "from minidiff import random, files",
    "random": "",
    "files": "",
}


@pytest.fixture
def package(tmp_path):
    """Writes the clean package with some modules replaced or added, and says where it is."""

    def write(**changed: str):
        for name, source in (CLEAN | {name.replace("__", "/", 1): text for name, text in changed.items()}).items():
            path = tmp_path / f"minidiff/{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{source}\n")
        return tmp_path

    return write


def test_the_dependencies_of_the_package_point_downward():
    assert arrows.problems() == []


def test_a_clean_package_has_no_problem(package):
    assert arrows.problems(package()) == []


@pytest.mark.parametrize(
    "module, source, message",
    [
        ("data__digits", "from minidiff.systems.zoo import load", "minidiff.data.digits imports minidiff.systems.zoo"),
        ("data__digits", "def f():\n    from minidiff.systems import zoo", "digits.py:2: minidiff.data.digits imports"),
        ("data__digits", "from ..systems.zoo import load", "minidiff.data.digits imports minidiff.systems.zoo"),
        ("models__unet", "import minidiff.systems.glide as g", "minidiff.models.unet imports minidiff.systems.glide"),
        ("models__unet", "from minidiff.recipes import read", "minidiff.models.unet imports minidiff.recipes, which"),
        ("systems__glide", "from minidiff import load", "minidiff.systems.glide imports minidiff, which stands above"),
        ("systems__glide", "from minidiff import metrics", "minidiff.systems.glide imports minidiff.metrics, which"),
        (
            "recipes____init__",
            "if TYPE_CHECKING:\n    from minidiff.training.loop import Run",
            "minidiff.training.loop",
        ),
        (
            "random",
            "from minidiff.schedule import x",
            "circle of imports: minidiff.random -> minidiff.schedule -> minid",
        ),
        (
            "systems__upsampler",
            "def f():\n    from minidiff.systems import zoo",
            "-> minidiff.systems.upsampler -> minid",
        ),
        ("helpers", "", "minidiff.helpers has no layer in tools.arrows"),
        ("sampler", "import pytest", "sampler.py:1: minidiff.sampler needs pytest to be imported"),
        (
            "sampler",
            "try:\n    from myst_nb import glue\nexcept ImportError:\n    pass",
            "minidiff.sampler needs myst_nb",
        ),
        ("cli", "class A:\n    import sphinx.util", "minidiff.cli needs sphinx to be imported"),
    ],
)
def test_a_wrong_import_is_found(package, module, source, message):
    (package() / "minidiff/metrics/__init__.py").touch()
    found = arrows.problems(package(**{module: source}))
    assert len(found) == 1 and message in found[0], found


def test_every_circle_is_named_once(package):
    circles = {
        "systems__zoo": "import minidiff.pretrained",
        "pretrained": "import minidiff.systems.zoo",
        "denoiser": "import minidiff.process",
        "process": "from minidiff import denoiser",
    }
    found = arrows.problems(package(**circles))
    assert len(found) == 2 and all("circle" in line for line in found)


def test_the_arrows_are_printed(package):
    text = arrows.text(arrows.arrows(package())).splitlines()
    assert "minidiff.schedule -> minidiff.files, minidiff.random" in text
    assert "minidiff.random -> nothing" in text and len(text) == len(CLEAN)
    done = subprocess.run([sys.executable, "-m", "tools.arrows"], cwd=arrows.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "minidiff.sampler -> " in done.stdout
