"""Training: exact resume after SIGKILL, damaged and foreign checkpoints, order, average, learning."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidiff.recipes import load_recipe
from minidiff.systems.zoo import build
from minidiff.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, write_atomically
from minidiff.training.data import Order, load_set
from minidiff.training.ema import EMA
from minidiff.training.loop import learning_rate, train
from minidiff.training.publish import publish

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.yaml")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors")[0]


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    def run(folder, kills):
        command = [sys.executable, str(HERE / "kill_and_resume.py"), TINY, str(folder), str(kills)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()[-1]

    run(tmp_path / "whole", 0)
    assert int(run(tmp_path / "killed", 3)) == 3
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[k], killed[k]) for k in whole)


def test_interrupted_between_checkpoints(tmp_path):
    recipe = load_recipe(TINY, ["training.checkpoint_every=7", "training.steps=20"])
    train(recipe, build, tmp_path / "whole", cpu=True, quiet=True)

    class Stop(Exception):
        pass

    def build_and_stop(r):
        system, calls = build(r), []

        def loss(*args):
            calls.append(0)
            if len(calls) == 12:
                raise Stop
            return type(system).loss(system, *args)

        system.loss = loss
        return system

    with pytest.raises(Stop):
        train(recipe, build_and_stop, tmp_path / "halted", cpu=True, quiet=True)
    assert load_checkpoint(tmp_path / "halted/last.safetensors")[1]["step"] == 7
    train(recipe, build, tmp_path / "halted", cpu=True, quiet=True)
    whole, halted = weights(tmp_path / "whole"), weights(tmp_path / "halted")
    assert all(torch.equal(whole[k], halted[k]) for k in whole)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "not safetensors"])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    recipe = load_recipe(TINY, ["training.steps=2"])
    train(recipe, build, tmp_path, cpu=True, quiet=True)
    last = tmp_path / "last.safetensors"
    if damage == "truncated":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, last)
    else:
        last.write_bytes(b"PK\x03\x04 something else")
    before = last.read_bytes()
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        train(recipe, build, tmp_path, cpu=True, quiet=True)
    assert last.read_bytes() == before
    assert load_checkpoint(tmp_path / "previous.safetensors")[1]["step"] == 1, "the one before is kept"


def test_another_recipe_is_refused(tmp_path):
    train(load_recipe(TINY, ["training.steps=1"]), build, tmp_path, cpu=True, quiet=True)
    with pytest.raises(ValueError, match=r"another recipe.*training"):
        train(load_recipe(TINY, ["training.steps=1", "training.lr=0.5"]), build, tmp_path, cpu=True, quiet=True)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    save_checkpoint(tmp_path / "w.safetensors", {"a": torch.zeros(2), "c": torch.zeros(1)}, {})
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=r"missing: b; unexpected: c; of another shape: a"):
        load_weights(module, tmp_path / "w.safetensors")


def test_order_visits_every_image_once_an_epoch():
    order = Order(n=10, batch=4, seed=0)
    seen = torch.cat([order[step] for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(Order(10, 4, 0)[3], order[3]), "any step can be asked for, in any order"


def test_ema_is_the_weighted_sum_it_claims_to_be():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    ema, expected = EMA(module, 0.5), 1.0
    for step, value in enumerate([3.0, -2.0, 5.0, 0.5]):
        module.weight.data.fill_(value)
        ema.update(module, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].item() == pytest.approx(expected)


def test_learning_rate_warms_up_and_decays():
    plan = dataclasses.replace(load_recipe(TINY).training, steps=100, warmup=10, lr=1.0, final_lr=0.02)
    rates = [learning_rate(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.02) and all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_training_learns_and_publishes(tmp_path):
    recipe = load_recipe(TINY, ["training.steps=60", "training.checkpoint_every=60", "training.lr=3e-3"])
    untrained = build(recipe)
    images, labels = load_set(recipe.data, 8, "heldout")
    generator = lambda: torch.Generator().manual_seed(0)
    before = untrained.loss(images, labels, generator())["simple"].item()
    train(recipe, build, tmp_path / "run", cpu=True, quiet=True)
    card = publish(recipe, build(recipe), tmp_path / "run", tmp_path / "out")
    assert card["metrics"]["heldout_simple"] < 0.8 * before
    assert card["steps"] == 60 and card["recipe"] == recipe.to_dict()
    with pytest.raises(ValueError, match="step 60 of 61"):
        publish(load_recipe(TINY, ["training.steps=61"]), untrained, tmp_path / "run", tmp_path / "out")


def test_two_processes_train_as_torchrun_starts_them(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\nfrom accelerate import Accelerator\nfrom minidiff.recipes import load_recipe\n"
        "from minidiff.systems.zoo import build\nfrom minidiff.training.loop import train\n"
        "assert Accelerator(cpu=True).num_processes == 2\n"
        "train(load_recipe(sys.argv[1], ['training.steps=3']), build, sys.argv[2], cpu=True, quiet=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run([*command, script, TINY, tmp_path / "run"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert load_checkpoint(tmp_path / "run/last.safetensors")[1]["step"] == 3
