"""Training: exact resume after SIGKILL, damaged and foreign checkpoints, average, learning."""

import dataclasses
import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from minidiff.data.sets import load_set
from minidiff.files import write_atomically
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import begun, load
from minidiff.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from minidiff.training.ema import EMA
from minidiff.training.loop import learning_rate, train
from minidiff.training.precision import autocast, computes_in
from minidiff.training.publish import heldout_metrics, publish

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.yaml")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors")[0]


def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path):
    command = [sys.executable, str(HERE / "kill_and_resume.py"), TINY, str(tmp_path / "killed"), "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(ended.stdout.split()[-1]) == 3
    train(load_recipe(TINY), Recipe.build, tmp_path / "whole", cpu=True, quiet=True)
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[k], killed[k]) for k in whole)


def test_interrupted_between_checkpoints(tmp_path):
    recipe = load_recipe(TINY, ["training.checkpoint_every=7", "training.steps=20"])
    train(recipe, Recipe.build, tmp_path / "whole", cpu=True, quiet=True)

    class Stop(Exception):
        pass

    def build_and_stop(r):
        system, calls = r.build(), []

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
    train(recipe, Recipe.build, tmp_path / "halted", cpu=True, quiet=True)
    whole, halted = weights(tmp_path / "whole"), weights(tmp_path / "halted")
    assert all(torch.equal(whole[k], halted[k]) for k in whole)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "not safetensors"])
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    recipe = load_recipe(TINY, ["training.steps=2"])
    train(recipe, Recipe.build, tmp_path, cpu=True, quiet=True)
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
        train(recipe, Recipe.build, tmp_path, cpu=True, quiet=True)
    assert last.read_bytes() == before
    assert load_checkpoint(tmp_path / "previous.safetensors")[1]["step"] == 1, "the one before is kept"


def test_another_recipe_is_refused(tmp_path):
    train(load_recipe(TINY, ["training.steps=1"]), Recipe.build, tmp_path, cpu=True, quiet=True)
    with pytest.raises(ValueError, match=r"another recipe.*training"):
        train(load_recipe(TINY, ["training.steps=1", "training.lr=0.5"]), Recipe.build, tmp_path, cpu=True, quiet=True)


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


@pytest.mark.parametrize("option", ["accumulate=4", "checkpointing=true"])
def test_saving_memory_changes_nothing_but_rounding(tmp_path, option):
    plain = ["training.steps=4", "training.checkpoint_every=4"]
    for name, more in (("plain", []), ("saving", [f"training.{option}"])):
        train(load_recipe(TINY, plain + more), Recipe.build, tmp_path / name, cpu=True, quiet=True)
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "saving")
    for name in one:
        if name.startswith("model."):
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_a_batch_in_parts_learns_the_importance_of_levels_as_a_whole_one(tmp_path):
    """Levels of a step are drawn by what was known before it, in every part; so the parts are one batch."""
    plain = ["system.level_sampler={name: importance, history: 1}", "schedule.T=4"]
    plain += ["training.steps=8", "training.checkpoint_every=8"]
    for name, more in (("plain", []), ("parts", ["training.accumulate=4"])):
        train(load_recipe(TINY, plain + more), Recipe.build, tmp_path / name, cpu=True, quiet=True)
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "parts")
    assert torch.equal(one["levels.seen"], other["levels.seen"]) and bool((one["levels.seen"] > 1).all())
    for name in one:
        if name.startswith(("model.", "levels.")):
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-5)


def test_one_process_trains_in_two_precisions(tmp_path):
    has_bf16 = computes_in("bf16", torch.device("cpu")) is torch.bfloat16
    for precision in ("bf16", "no"):
        recipe = load_recipe(TINY, ["training.steps=1", f"training.precision='{precision}'"])
        train(recipe, Recipe.build, tmp_path / precision, cpu=True, quiet=True)
    one, other = weights(tmp_path / "bf16"), weights(tmp_path / "no")
    names = [name for name in one if name.startswith("model.")]
    differ = any(not torch.equal(one[name], other[name]) for name in names)
    assert differ == has_bf16, "the precision must make a difference where the CPU has instructions for it"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_for_devices_that_have_it(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bf16)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    expected = torch.bfloat16 if has_bf16 else torch.float32
    assert computes_in("bf16", cpu) is expected and computes_in("bf16", gpu) is torch.bfloat16
    assert computes_in("no", cpu) is computes_in("no", gpu) is torch.float32
    with autocast("bf16", cpu):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected


def test_batches_that_do_not_divide_and_unknown_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch of 8 does not divide"):
        train(load_recipe(TINY, ["training.accumulate=3"]), Recipe.build, tmp_path, cpu=True, quiet=True)
    cases = (
        ("training.sharding=half", "sharding must be one of none, full, got 'half'"),
        ("training.precision=fp16", "precision must be one of no, bf16, got 'fp16'"),
        ("system.level_sampler=noisy", "unknown level sampler 'noisy'.*noisiest"),
    )
    for option, message in cases:
        with pytest.raises(ValueError, match=message):
            load_recipe(TINY, [option])


def test_importance_of_levels_is_saved_and_resumed(tmp_path):
    recipe = load_recipe(TINY, ["system.level_sampler=importance", "training.steps=6", "training.checkpoint_every=3"])
    train(recipe, Recipe.build, tmp_path / "whole", cpu=True, quiet=True)
    whole = weights(tmp_path / "whole")
    assert whole["levels.seen"].sum() == 6 * 8
    (tmp_path / "halted").mkdir()
    (tmp_path / "halted/last.safetensors").write_bytes((tmp_path / "whole/previous.safetensors").read_bytes())
    train(recipe, Recipe.build, tmp_path / "halted", cpu=True, quiet=True)
    halted = weights(tmp_path / "halted")
    assert all(torch.equal(whole[k], halted[k]) for k in whole)


def test_a_folder_trains_through_workers_and_resumes_inside_an_epoch(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        pixels = (torch.rand(8, 8, 3, generator=generator) * 255).byte().numpy()
        (tmp_path / f"images/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"images/{i % 2}/{i}.png")
    (tmp_path / "images/0/0.png").write_bytes(b"no picture")
    changes = ["data.name=folder", f"data.path={tmp_path / 'images'}", "data.train=", "data.heldout=", "data.workers=1"]
    changes += ["network.in_channels=3", "network.out_channels=6", "network.classes=3"]
    changes += ["training.steps=4", "training.checkpoint_every=2"]
    recipe = load_recipe(TINY, [c for c in changes])
    train(recipe, Recipe.build, tmp_path / "whole", cpu=True, quiet=True)
    tensors, meta = load_checkpoint(tmp_path / "whole/last.safetensors")
    assert meta["broken_images"] == 1
    (tmp_path / "halted").mkdir()
    (tmp_path / "halted/last.safetensors").write_bytes((tmp_path / "whole/previous.safetensors").read_bytes())
    train(recipe, Recipe.build, tmp_path / "halted", cpu=True, quiet=True)
    assert all(torch.equal(v, weights(tmp_path / "halted")[k]) for k, v in tensors.items())


def test_ema_is_the_weighted_sum_it_claims_to_be():
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(1.0)
    ema, expected = EMA(module, (0.5, 0.05)), {0.5: 1.0, 0.05: 1.0}
    for step, value in enumerate([3.0, -2.0, 5.0, 0.5]):
        module.weight.data.fill_(value)
        ema.update(module, step)
        for limit in expected:
            decay = min(limit, (1 + step) / (10 + step))
            expected[limit] = decay * expected[limit] + (1 - decay) * value
    for limit, average in ema.averages.items():
        assert average["weight"].item() == pytest.approx(expected[limit])
    assert expected[0.5] != pytest.approx(expected[0.05])


def test_learning_rate_warms_up_and_decays():
    plan = dataclasses.replace(load_recipe(TINY).training, steps=100, warmup=10, lr=1.0, final_lr=0.02)
    rates = [learning_rate(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0
    assert rates[-1] == pytest.approx(0.02) and all(a >= b for a, b in itertools.pairwise(rates[9:]))


def _check_published_folder(folder, recipe):
    """What was published is loaded by its folder, as a committed checkpoint is by its name; a start may spare parts."""
    from minidiff.metrics.sources import is_image_set

    weights = load_checkpoint(folder / "model.safetensors")[0]
    again = dataclasses.replace(recipe, start=str(folder))
    for system in (load(str(folder)), begun(again)):
        assert all(torch.equal(value, weights[name].float()) for name, value in system.state_dict().items())
    renewed = begun(dataclasses.replace(again, fresh=("network.time_embed",)))
    for name, value in renewed.state_dict().items():
        assert torch.equal(value, weights[name].float()) != name.startswith("network.time_embed."), name
    with pytest.raises(ValueError, match=r"no part 'network\.time'"):
        begun(dataclasses.replace(again, fresh=("network.time",)))
    assert not is_image_set(folder)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match="no checkpoint at"):
        load(str(folder))
    with pytest.raises(ValueError, match="no checkpoint, run or preset '"):
        load(str(folder.parent))


def test_training_learns_and_publishes(tmp_path):
    recipe = load_recipe(TINY, ["training.steps=60", "training.checkpoint_every=60", "training.lr=3e-3"])
    untrained = recipe.build()
    heldout = load_set(recipe.data, "heldout")
    before = untrained.loss(heldout, torch.Generator().manual_seed(0))["simple"].mean().item()
    train(recipe, Recipe.build, tmp_path / "run", cpu=True, quiet=True)
    card = publish(recipe, recipe.build(), tmp_path / "run", tmp_path / "out")
    assert card["metrics"]["heldout_simple"] < 0.8 * before
    assert card["steps"] == 60 and card["recipe"] == recipe.to_plain()
    _check_published_folder(tmp_path / "out", recipe)
    with pytest.raises(ValueError, match="step 60 of 61"):
        publish(load_recipe(TINY, ["training.steps=61"]), untrained, tmp_path / "run", tmp_path / "out")


def test_heldout_losses_are_measured_in_parts_no_larger_than_a_batch():
    recipe = load_recipe(TINY)
    system, seen, losses = recipe.build(), [], []
    measure = system.loss

    def loss(batch, *rest):
        assert batch.keys() == {"image", "label"}
        seen.append(batch["image"])
        losses.append(measure(batch, *rest))
        return losses[-1]

    system.loss = loss
    heldout = load_set(recipe.data, "heldout")
    found = heldout_metrics(system, recipe, heldout, passes=2)
    assert max(map(len, seen)) <= recipe.training.batch < len(heldout["image"])
    assert torch.equal(torch.cat(seen), heldout["image"].repeat(2, 1, 1, 1)), "every image, in every pass"
    simple = torch.cat([part["simple"] for part in losses])
    assert found["heldout_simple"] == pytest.approx(simple.mean().item(), abs=1e-5)


def test_labels_that_do_not_fit_are_found_before_the_first_step(tmp_path):
    """Twelve classes for a system of ten, with their names; and pictures without labels."""
    for i in range(12):
        (tmp_path / "images" / f"{i}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{i}" / "x.png")
    at = ["data.train=", "data.heldout=", f"data.path={tmp_path / 'images'}"]
    recipe = load_recipe(TINY, ["data.name=folder", *at])
    with pytest.raises(ValueError, match=r"classes 0 to 11 \(0, 1, 2, .*, and the system has 10"):
        train(recipe, begun, tmp_path / "run", cpu=True, quiet=True)
    with tarfile.open(tmp_path / "images" / "x.tar", "w") as archive:
        archive.add(tmp_path / "images" / "3", "3")
    recipe = load_recipe(TINY, ["data.name=shards", *at])
    with pytest.raises(ValueError, match="the data have no labels, and the system is told 10 classes"):
        train(recipe, begun, tmp_path / "run", cpu=True, quiet=True)
    assert [path.name for path in tmp_path.glob("run/*")] == [".lock"]
