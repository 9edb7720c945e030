"""The wheel carries the checkpoints: installed elsewhere, it samples without the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_samples_elsewhere(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "minidiff/_data/checkpoints/digits/model.safetensors" in names
    assert not [n for n in names if n.startswith(("tests/", "lessons/", "tools/"))]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    where = "import minidiff; print(minidiff.__file__)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["PYTHONPATH"] = str(tmp_path / "site")
    run = lambda *a: subprocess.run(
        [sys.executable, *a], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "site") in run("-c", where).stdout
    run("-m", "minidiff", "sample", "digits", "--label", "7", "--scale", "3", "--steps", "5", "--out", "seven.png")
    assert (tmp_path / "seven.png").stat().st_size > 500
