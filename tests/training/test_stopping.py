"""What ends training early: divergence and Ctrl-C; what was good before stays."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.checkpoint import export_weights, load_checkpoint, save_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import publish

TINY = str(Path(__file__).parent / "tiny.yaml")


def planted(at: int, do):
    """The system of a recipe whose loss calls ``do(system, terms)`` at a step, counted from 1."""

    def build(recipe):
        system, calls = recipe.build(), []

        def loss(*args):
            calls.append(0)
            terms = type(system).loss(system, *args)
            return do(system, terms) if len(calls) == at else terms

        system.loss = loss
        return system

    return build


def nan_loss(system, terms):
    return terms | {"loss": terms["loss"] * float("nan")}


def nan_gradient(system, terms):
    return terms | {"loss": terms["loss"] + (next(system.parameters()).flatten()[0] * 0).sqrt()}


def nan_weight(system, terms):
    with torch.no_grad():
        list(system.parameters())[-1].flatten()[0] = float("inf")
    return terms


FAULTS = {"the loss": nan_loss, "the norm of the gradient": nan_gradient, "a weight": nan_weight}


@pytest.mark.parametrize("what", FAULTS)
def test_the_first_number_that_is_not_finite_ends_training_and_the_last_finite_checkpoint_stays(tmp_path, what):
    recipe = load_recipe(TINY, ["training.steps=6"])
    with pytest.raises(ValueError, match=rf"{what} is not finite at step 4 of 6; .*last.safetensors holds"):
        train(recipe, planted(4, FAULTS[what]), tmp_path, cpu=True, quiet=True)
    for name, step in (("last", 3), ("previous", 2)):
        tensors, meta = load_checkpoint(tmp_path / f"{name}.safetensors")
        assert meta["step"] == step and all(v.isfinite().all() for v in tensors.values())


def test_a_diverged_training_ends_with_one_line_and_publishes_nothing(tmp_path):
    out, target = str(tmp_path / "run"), tmp_path / "published"
    command = ["train", TINY, "training.lr=1e18", "--out", out, "--publish", str(target), "--quiet", "--cpu"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and "is not finite at step" in result.output
    assert not (target / "card.json").exists() and not (target / "model.safetensors").exists()


def test_nothing_that_is_not_finite_is_written(tmp_path):
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, {"a": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="not finite: b"):
        save_checkpoint(path, {"a": torch.ones(1), "b": torch.tensor([float("nan")])}, {})
    assert load_checkpoint(path)[0].keys() == {"a"}
    with pytest.raises(ValueError, match=r"float16.*: b"):
        export_weights({"b": torch.tensor([1e6])}, tmp_path / "model.safetensors", {})
    assert not (tmp_path / "model.safetensors").exists()


def test_a_card_is_json_or_not_there(tmp_path, monkeypatch):
    recipe = load_recipe(TINY, ["training.steps=2", "training.batch=64"])
    train(recipe, Recipe.build, tmp_path / "run", cpu=True, quiet=True)
    with pytest.raises(ValueError, match="held-out losses are not finite"):
        publish(recipe, planted(1, nan_loss)(recipe), tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    publish(recipe, recipe.build(), tmp_path / "run", tmp_path / "out")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "out/card.json").read_text(encoding="utf-8"), parse_constant=refuse)


def interrupt(system, terms):
    os.kill(os.getpid(), signal.SIGINT)
    return terms


def test_ctrl_c_saves_the_step_and_training_goes_on_to_the_same_weights(tmp_path):
    recipe = load_recipe(TINY, ["training.steps=6", "training.checkpoint_every=6"])
    train(recipe, Recipe.build, tmp_path / "whole", cpu=True, quiet=True)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 6"):
        train(recipe, planted(4, interrupt), tmp_path / "halted", cpu=True, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(tmp_path / "halted/last.safetensors")[1]["step"] == 4
    train(recipe, Recipe.build, tmp_path / "halted", cpu=True, quiet=True)
    whole, halted = (load_checkpoint(tmp_path / name / "last.safetensors")[0] for name in ("whole", "halted"))
    assert whole.keys() == halted.keys() and all(torch.equal(whole[k], halted[k]) for k in whole)


def test_the_command_says_how_to_go_on_after_ctrl_c(tmp_path, monkeypatch):
    monkeypatch.setattr("minidiff.store.begun", planted(2, interrupt))
    result = CliRunner().invoke(main, ["train", TINY, "--out", str(tmp_path), "--quiet", "--cpu"])
    assert result.exit_code == 130
    assert "stopped after step 2 of 24" in result.output and "the same command goes on" in result.output


class Gone:
    """Standard error after whoever read it has left."""

    encoding = "utf-8"

    def write(self, text=""):
        raise BrokenPipeError

    flush = write

    def fileno(self):
        return 2

    def isatty(self):
        return False


def test_training_goes_on_when_nobody_looks_on_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", Gone())
    train(load_recipe(TINY, ["training.steps=2"]), Recipe.build, tmp_path, cpu=True, quiet=False)
    assert load_checkpoint(tmp_path / "last.safetensors")[1]["step"] == 2


def test_training_goes_on_when_its_numbers_cannot_be_written(tmp_path, monkeypatch, caplog):
    """The disk is full between two checkpoints, say: TensorBoard's thread fails, and tells at a later step."""
    from torch.utils.tensorboard import SummaryWriter

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    train(load_recipe(TINY, ["training.steps=2"]), Recipe.build, tmp_path / "run", True, True)
    assert load_checkpoint(tmp_path / "run/last.safetensors")[1]["step"] == 2
    assert "are written no more ([Errno 28] No space left on device); the training goes on" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr(SummaryWriter, "close", full)
    train(load_recipe(TINY, ["training.steps=2"]), Recipe.build, tmp_path / "other", True, True)
