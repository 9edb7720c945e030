"""``minidiff sample``: an npz of all images, and the same images from one process and from two."""

import os
import subprocess
import sys

import numpy as np
from click.testing import CliRunner

from minidiff.cli import main

ARGUMENTS = ["sample", "digits", "--count", "6", "--steps", "2", "--scale", "2", "--batch", "2", "--cpu"]


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


def test_other_files_and_unknown_presets_are_refused(tmp_path):
    for more, message in (
        (["--out", str(tmp_path / "x.gif")], ".png or .npz"),
        (["--steps", "many"], "steps"),
        (["--weights", __file__], "no preset 'digits'"),
    ):
        result = CliRunner().invoke(main, [*ARGUMENTS, *more])
        assert result.exit_code == 2 and message in result.output, result.output
        assert result.output.count("\n") == 1
    assert not list(tmp_path.iterdir())
