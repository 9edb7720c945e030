"""What holds of every network: a copy is a network of its own, compiled ones compute the same, imports point down."""

from __future__ import annotations

import ast
import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import awake

import minidiff.models
from minidiff.condition import Condition
from minidiff.models.classifier import Classifier
from minidiff.models.clip import CLIPConfig, NoisedCLIP
from minidiff.models.open_clip import OpenCLIP
from minidiff.models.text import TextConfig
from minidiff.models.unet import UNet, UNetConfig

SHAPE = UNetConfig(
    size=8, channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=8,
    text=TextConfig(vocabulary=7, context=4, width=8, layers=1, heads=2),
)  # fmt: skip
CLIP = CLIPConfig(
    size=8, patch=4, embedding=6, width=16, layers=2, heads=2, vocabulary=12, context=5, text_width=8, text_layers=2,
    text_heads=2, levels=1000,
)  # fmt: skip
NETWORKS = {
    "unet": lambda: UNet(SHAPE),
    "classifier": lambda: Classifier(SHAPE),
    "noised clip": lambda: NoisedCLIP(CLIP),
    "open_clip": lambda: OpenCLIP(dataclasses.replace(CLIP, levels=0)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return awake(NETWORKS[request.param](), dtype=torch.float32)


@torch.no_grad()
def answer(network):
    """Of two images, and captions where it reads some."""
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    time, tokens = torch.tensor([3, 700]), torch.tensor([[1, 2, -1, -1], [4, 3, 2, 1]])
    if isinstance(network, UNet):
        vector, sequence = network.text(tokens)
        return network(x, time, Condition(vector=vector, tokens=sequence))
    return network(x, time) if isinstance(network, Classifier) else network(x, time, tokens)


def compiled(network) -> list:
    """Compile in place; the graphs are found in the list once they are made."""
    torch.compiler.reset()
    graphs = []
    network.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    return graphs


@pytest.mark.parametrize("compiling", [False, True])
def test_a_copy_computes_with_its_own_weights(network, compiling):
    if compiling:
        compiled(network)
        answer(network)
    twin, before = copy.deepcopy(network), answer(network)
    theirs, ours = ({p.data_ptr() for p in one.parameters()} for one in (twin, network))
    assert not theirs & ours
    awake(network, seed=1, dtype=torch.float32)
    assert not torch.allclose(answer(network), before), "the original has other weights now"
    torch.testing.assert_close(answer(twin), before)
    awake(twin, seed=1, dtype=torch.float32)
    torch.testing.assert_close(answer(twin), answer(network))


def test_compiled_networks_compute_the_same(network):
    before, graphs = answer(network), compiled(network)
    torch.testing.assert_close(answer(network), before)
    assert graphs


@pytest.mark.parametrize("path", sorted(Path(minidiff.models.__path__[0]).glob("*.py")), ids=lambda path: path.stem)
def test_networks_know_nothing_of_systems_and_recipes(path):
    """Imports in functions among them."""
    above = {"systems", "recipes", "training", "metrics", "course", "cli", "data"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            named = {(node.module or "").partition(".")[0]} if node.module else {name.name for name in node.names}
            assert not named & above, f"line {node.lineno}"
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.partition(".")[0] == "minidiff" for name in names), f"line {node.lineno}"
