"""What may change when a training goes on, who may train where, and what publishing needs beforehand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.files import owned
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train

TINY = Path(__file__).parent / "tiny.yaml"
SHORT = ["training.steps=3", "training.checkpoint_every=1"]


def go(folder, *changes, recipe=TINY):
    train(load_recipe(str(recipe), [*SHORT, *changes]), Recipe.build, folder, cpu=True, quiet=True)
    return load_checkpoint(folder / "last.safetensors")


def back(folder):
    """The run one step before its end, in a new file: tensors that were loaded may map the old one."""
    (folder / "last.safetensors").unlink()
    shutil.copy(folder / "previous.safetensors", folder / "last.safetensors")


def test_how_a_training_runs_may_change(tmp_path):
    whole, _ = go(tmp_path / "run")
    back(tmp_path / "run")
    renamed = tmp_path / "another name.yaml"
    renamed.write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    changes = ["data.workers=2", f"data.path={tmp_path}", "data.heldout=elsewhere", "training.checkpoint_every=7"]
    other, meta = go(tmp_path / "run", *changes, recipe=renamed)
    assert meta["step"] == 3 and meta["recipe"]["data"]["workers"] == 2 and meta["recipe"]["name"] == "another name"
    assert all(torch.equal(other[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("change", ["training.checkpointing=true", "training.accumulate=2"])
def test_how_memory_is_saved_may_change_up_to_rounding(tmp_path, change):
    whole, _ = go(tmp_path)
    back(tmp_path)
    other, _ = go(tmp_path, change)
    for name, tensor in whole.items():
        if name.startswith(("model.", "ema")):
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.lr=0.5", r"training\.lr 0\.001 -> 0\.5"),
        ("training.seed=4", r"training\.seed 3 -> 4"),
        ("network.dropout=0.2", r"network\.dropout 0\.1 -> 0\.2"),
        ("system.drop=0.1", r"system\.drop 0\.2 -> 0\.1"),
        ("training.steps=4", r"training\.steps 3 -> 4"),
    ],
)
def test_what_defines_the_result_may_not(tmp_path_factory, change, said):
    folder = tmp_path_factory.getbasetemp() / "defined"
    if not folder.exists():
        go(folder)
    before = (folder / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"another recipe \({said}(; [^)]*)?\)"):
        go(folder, change)
    assert (folder / "last.safetensors").read_bytes() == before


def test_more_steps_of_a_constant_learning_rate_are_those_of_a_longer_training(tmp_path):
    constant = ["training.final_lr=1"]
    go(tmp_path / "more", *constant)
    more, meta = go(tmp_path / "more", *constant, "training.steps=5")
    whole, _ = go(tmp_path / "whole", *constant, "training.steps=5")
    assert meta["step"] == 5 and all(torch.equal(more[k], whole[k]) for k in whole)
    with pytest.raises(ValueError, match=r"training\.steps 5 -> 4"):
        go(tmp_path / "more", *constant, "training.steps=4")


def test_one_process_trains_in_a_folder(tmp_path):
    script = "import sys, pathlib, minidiff.files as f\nwith f.owned(pathlib.Path(sys.argv[1])): print(); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    with pytest.raises(ValueError, match="another process is writing to"):
        go(tmp_path)
    assert not (tmp_path / "last.safetensors").exists()
    other.kill()
    other.communicate()
    go(tmp_path)


def test_children_that_outlive_a_training_do_not_hold_its_folder(tmp_path):
    with owned(tmp_path):
        child = os.fork()
        if not child:
            os.read(0, 0)
            import time

            time.sleep(5)
            os._exit(0)
    script = "import sys, pathlib, minidiff.files as f\nwith f.owned(pathlib.Path(sys.argv[1])): pass"
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
    os.kill(child, 9)
    os.waitpid(child, 0)


def command(tmp_path, *more):
    arguments = ["train", str(TINY), *SHORT, *more, "--out", str(tmp_path / "run"), "--quiet", "--cpu"]
    return CliRunner().invoke(main, arguments)


def images(folder):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for i in range(8):
        for split in ("train", "test"):
            place = folder / split / str(i % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()).save(place / f"{i}.png")
    return ["data.name=folder", f"data.path={folder}", "network.in_channels=3", "network.out_channels=6"]


def test_publishing_is_looked_at_before_training_and_may_be_corrected_after_it(tmp_path):
    changes = images(tmp_path / "images")
    target = str(tmp_path / "out")
    result = command(tmp_path, *changes, "data.heldout=nowhere", "--publish", target)
    assert result.exit_code == 2 and "nowhere" in result.output
    (tmp_path / "file").write_bytes(b"")
    result = command(tmp_path, *changes, "--publish", str(tmp_path / "file/out"))
    assert result.exit_code == 2 and "cannot be written to" in result.output
    assert not (tmp_path / "run").exists(), "nothing was trained for it"
    assert command(tmp_path, *changes, "data.heldout=nowhere").exit_code == 0
    written = (tmp_path / "run/last.safetensors").read_bytes()
    assert command(tmp_path, *changes, "--publish", target).exit_code == 0
    assert (tmp_path / "out/card.json").is_file() and (tmp_path / "run/last.safetensors").read_bytes() == written


def test_torchrun_without_a_gpu_trains_one_model(tmp_path):
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minidiff"]
    arguments = ["train", TINY, *SHORT, "--out", tmp_path, "--quiet"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*started, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("3 steps done") == 1
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["device"].startswith("2 x cpu")


class WindowsLocks:
    """What ``msvcrt`` offers, with the locks of this system beneath."""

    LK_NBLCK = 2

    def __init__(self):
        import fcntl

        self.fcntl, self.asked = fcntl, []

    def locking(self, descriptor, mode, n_bytes):
        self.asked.append((mode, n_bytes))
        self.fcntl.lockf(descriptor, self.fcntl.LOCK_EX | self.fcntl.LOCK_NB)


def test_one_process_trains_in_a_folder_on_windows_too(tmp_path, monkeypatch):
    locks = WindowsLocks()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", locks)
    program = "import sys, pathlib, minidiff.files as f\nwith f.owned(pathlib.Path(sys.argv[1])): pass"
    with owned(tmp_path):
        assert locks.asked == [(2, 1)]
        other = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert "another process is writing to" in other.stderr
    with owned(tmp_path):
        pass
    held = subprocess.Popen(
        [sys.executable, "-c", program.replace("pass", "print(flush=True); input()"), tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    held.stdout.readline()
    with pytest.raises(ValueError, match="another process is writing to"), owned(tmp_path):
        pass
    held.communicate(b"\n")


def test_a_platform_without_locks_goes_without(tmp_path, monkeypatch):
    for module in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, module, None)
    with owned(tmp_path), owned(tmp_path):
        pass


def moved_label(folder):
    (folder / "train/0/0.png").rename(folder / "train/1/0.png")
    (folder / "train/1/1.png").rename(folder / "train/0/1.png")


def replaced(folder):
    (folder / "train/0/2.png").write_bytes((folder / "train/1/3.png").read_bytes())


def renamed(folder):
    (folder / "train/0").rename(folder / "train/none")


@pytest.mark.parametrize("change", [moved_label, replaced, renamed])
def test_data_that_changed_are_not_gone_on_with(tmp_path, change):
    changes = [*images(tmp_path / "images"), "training.steps=2", "training.final_lr=1"]
    go(tmp_path / "run", *changes)
    before = (tmp_path / "run/last.safetensors").read_bytes()
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    more = [*changes, "training.steps=3"]
    change(tmp_path / "images")
    with pytest.raises(ValueError, match="was trained on other data"):
        go(tmp_path / "run", *more)
    assert (tmp_path / "run/last.safetensors").read_bytes() == before
    _, meta = go(tmp_path / "run", *more, f"data.path={tmp_path / 'moved'}")
    assert meta["step"] == 3, "data that only moved are the same"


def test_adafactor_goes_on_where_it_stood(tmp_path):
    """It keeps a row and a column of sums of squares where AdamW keeps two moments."""
    whole, meta = go(tmp_path, "training.optimizer=adafactor")
    kept = {name.rpartition(".")[2] for name in whole if name.startswith("optimizer.")}
    assert kept == {"step", "row_var", "col_var", "variance"} and meta["step"] == 3
    back(tmp_path)
    other, _ = go(tmp_path, "training.optimizer=adafactor")
    assert all(torch.equal(other[name], tensor) for name, tensor in whole.items())
    with pytest.raises(ValueError, match=r"training\.optimizer adafactor -> adamw"):
        go(tmp_path)


def test_adafactor_is_refused_where_torch_has_none(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Adafactor")
    with pytest.raises(ValueError, match=r"training\.optimizer=adafactor needs torch 2\.5 or later"):
        go(tmp_path, "training.optimizer=adafactor")
    with pytest.raises(ValueError, match="sharding none is accepted, got 'full'"):
        load_recipe(str(TINY), ["training.optimizer=adafactor", "training.sharding=full"])
