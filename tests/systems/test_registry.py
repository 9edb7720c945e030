"""Systems by name: found where they live, imported when they are asked for, and systems of one's own."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass

import pytest
from helpers import TINY

from minidiff.models.unet import UNet, UNetConfig
from minidiff.recipes import Recipe, load_recipe
from minidiff.systems import registry
from minidiff.systems.registry import HOMES, find, system


@pytest.mark.parametrize("name", HOMES)
def test_every_home_holds_the_system_that_it_is_said_to(name):
    found = find(name)
    assert found.name == name and found.make.__module__ == f"minidiff.systems.{HOMES[name]}"
    assert dataclasses.is_dataclass(found.config) and dataclasses.is_dataclass(found.options)
    assert found.scheduled == (name not in ("autoencoder", "text_tower", "unclip_ar_prior", "lsgm"))


def test_all_that_is_registered_here_has_a_home():
    """Else a recipe that names it would not find it in a fresh process."""
    for name in HOMES:
        find(name)
    ours = {name for name, found in registry._registered.items() if found.make.__module__.startswith("minidiff.")}
    assert ours == set(HOMES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glid", "unknown system 'glid': did you mean 'glide'?"),
        ("class_condtional", "unknown system 'class_condtional': did you mean 'class_conditional'?"),
        ("qqq", "unknown system 'qqq': known: autoencoder, cdm, class_conditional, classifier, clip"),
        ("no.module", "unknown system 'no.module'"),
        ("", "unknown system ''"),
        ("json", "unknown system 'json'"),
    ],
)
def test_systems_that_are_none(name, message):
    """A module that registers nothing of its name is none either."""
    with pytest.raises(ValueError, match=re.escape(message)):
        find(name)


def test_the_network_s_shape_is_what_its_maker_takes(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def network(config: UNetConfig) -> UNet:
        return UNet(config)

    @dataclass(frozen=True)
    class Options:
        power: int = 2

    @system("mine", network=network, options=Options, scheduled=False)
    def mine(made, schedule, options, data):
        return made, schedule, options.power, data.name

    found = find("mine")
    assert (found.config, found.options, found.scheduled, found.make) == (UNetConfig, Options, False, mine)
    plain = load_recipe("digits", TINY).to_plain()
    del plain["schedule"]
    recipe = Recipe.from_plain(plain | {"system": {"name": "mine", "power": 3}})
    made, *rest = recipe.build()
    assert isinstance(made, UNet) and rest == [None, 3, "digits"]
    assert Recipe.from_plain(recipe.to_plain()) == recipe
    with pytest.raises(ValueError, match="a mine has no noise levels"):
        Recipe.from_plain(plain | {"system": "mine", "schedule": {"name": "linear"}})


def run(code: str, folder, *path: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code), *path]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout


def test_building_digits_imports_no_other_system(tmp_path):
    """The registry is lazy: in a fresh process nothing of CLIP, of GLIDE or of open_clip is there."""
    loaded = run(
        """
        import sys
        from minidiff.recipes import load_recipe
        load_recipe("digits").build(empty=True)
        print(*sorted(sys.modules))
        """,
        tmp_path,
    ).split()
    assert "minidiff.systems.adm" in loaded
    heavy = {"open_clip", "transformers", "tensorboard", "accelerate", "torchvision", "matplotlib"}
    assert not heavy & set(loaded)
    ours = {"clip", "classifier", "glide", "cascade", "inpainting"}
    assert not {f"minidiff.systems.{name}" for name in ours} & set(loaded)


TOY = """
from dataclasses import dataclass
import torch
from torch import nn
from minidiff.systems.registry import system
from minidiff.training.trainable import Trainable

@dataclass(frozen=True)
class Shape:
    size: int
    power: float = 1.0

@dataclass(frozen=True)
class Options:
    target: float = 3.0

class Network(nn.Module):
    def __init__(self, config: Shape):
        super().__init__()
        self.config, self.w = config, nn.Parameter(torch.zeros(config.size))

class Toy(Trainable):
    def __init__(self, network, target):
        super().__init__()
        self.network, self.target = network, target
    def loss(self, batch, generator=None):
        return {"loss": (self.network.w.sum() - self.target) ** 2 + 0 * batch["label"]}

@system("toy", network=Network, options=Options, scheduled=False)
def toy(network, schedule, options, data):
    return Toy(network, options.target)
"""
RECIPE = """
system: {name: toy, target: 5}
data: {name: digits, size: 8}
network: {size: 2}
training: {steps: 60, batch: 4, lr: 0.1, warmup: 0}
"""


def test_a_system_of_one_s_own_lies_in_the_folder_one_stands_in(tmp_path):
    """Its recipe is read, refused by name where it is wrong, trained by the same loop, and published and loaded."""
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    said = run(
        """
        import sys
        sys.path[:] = [p for p in sys.path if p]  # as where minidiff is a command
        from minidiff.recipes import Recipe, load_recipe
        from minidiff.store import find
        from minidiff.training.loop import train
        recipe = load_recipe("mine.yaml")
        print(recipe.system, recipe.options.target, recipe.schedule, recipe.name)
        assert Recipe.from_plain(recipe.to_plain()) == recipe
        train(recipe, Recipe.build, "run", cpu=True, quiet=True)
        found = find("run")
        print(type(found.system).__name__, abs(float(found.system.network.w.sum()) - 5) < 1)
        for change in ("system.targets=1", "network.sizes=1"):
            try:
                load_recipe("mine.yaml", [change])
            except ValueError as error:
                print(error)
        """,
        tmp_path,
    ).splitlines()
    assert said == [
        "toy 5.0 None mine",
        "Toy True",
        "unknown key recipe.system.targets: did you mean 'target'?",
        "unknown key recipe.network.sizes: did you mean 'size'?",
    ]


def test_importing_a_system_leaves_the_path_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "toy_two.py").write_text(TOY.replace('"toy"', '"toy_two"'))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert find("toy_two").scheduled is False and sys.path == before
    (tmp_path / "toy_three.py").write_text("raise RuntimeError('broken')")
    with pytest.raises(RuntimeError, match="broken"):
        find("toy_three")
    assert sys.path == before
    monkeypatch.delitem(registry._registered, "toy_two")
    monkeypatch.delitem(sys.modules, "toy_two")
