"""The counted cost against published figures, formulas by hand, and a real step."""

import dataclasses

import pytest
import torch
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.models.unet import UNetConfig
from minidiff.recipes import load_recipe
from minidiff.training.cost import cost, images_per_second

V100 = 125e12  # peak in half precision
THEORETICAL = {"adm-imagenet64": 182.3, "adm-imagenet128": 65.2, "adm-imagenet256": 17.9}  # images/s, ADM's table 7


@pytest.mark.parametrize("name", THEORETICAL)
def test_operations_give_the_published_theoretical_throughput(name):
    assert V100 / cost(load_recipe(name)).flops == pytest.approx(THEORETICAL[name], rel=0.05)


def test_one_convolution_by_hand():
    tiny = UNetConfig(size=8, channels=8, channel_mult=(1,), blocks=1, in_channels=3, out_channels=3, groups=4)
    recipe = dataclasses.replace(load_recipe("shapes16"), network=dataclasses.replace(tiny, classes=9))
    fixed, learned = (
        dataclasses.replace(recipe, options=dataclasses.replace(recipe.options, variance=v))
        for v in ("fixed", "learned")
    )
    wider = dataclasses.replace(learned, network=dataclasses.replace(recipe.network, out_channels=6))
    more = cost(wider).flops - cost(fixed).flops
    assert more == 3 * 3 * 2 * 9 * 8 * 64, "3 channels, 3 passes, 2 per multiply-add, 3x3 x 8 channels, 64 pixels"


def test_recomputation_trades_memory_for_operations():
    plain = load_recipe("cifar16")
    saving = load_recipe("cifar16", ["training.checkpointing=true"])
    assert cost(saving).activation_bytes < cost(plain).activation_bytes / 3
    assert cost(saving).flops == pytest.approx(cost(plain).flops * 4 / 3)


def test_activations_are_what_autograd_really_keeps():
    recipe = load_recipe("digits")
    network, kept = recipe.build().network, {}
    weights = {p.data_ptr() for p in network.parameters()}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = network(torch.randn(1, 1, 8, 8), torch.zeros(1))
    real = sum(kept.values()) + 4 * out.numel()
    assert cost(recipe).activation_bytes == pytest.approx(real, rel=0.25)


def test_days():
    counted = cost(load_recipe("digits"))
    assert counted.days(1, counted.flops, 1.0) == pytest.approx(counted.images / 86400)
    assert counted.days(4, counted.flops, 0.5) == pytest.approx(counted.images / 86400 / 2)


def test_dry_run_measures_and_trains_nothing(tmp_path):
    rate, batch = images_per_second(load_recipe("digits"), most=4)
    assert rate > 0 and batch == 4
    result = CliRunner().invoke(main, ["train", "digits", "--dry-run", "--gpus", "2", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    for word in ("parameters", "0.83 M", "operations", "memory", "measured here", "2 GPUs"):
        assert word in result.output
    assert not (tmp_path / "run").exists()


def test_stable_diffusion_costs_what_diffusers_network_costs():
    """A network that reads what a frozen tower says of 77 places."""
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        theirs = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        x, t, states = torch.empty(1, 4, 64, 64), torch.zeros(1), torch.empty(1, 77, 768)
    with FlopCounterMode(display=False) as counter:
        theirs(x, t, encoder_hidden_states=states).sample.sum().backward()
    counted = cost(load_recipe("sd15"))
    assert counted.parameters == sum(p.numel() for p in theirs.parameters()) == 859_520_964
    assert counted.flops == pytest.approx(counter.get_total_flops(), rel=1e-3)
