"""Released checkpoints: published counts, and OpenAI's layout evaluated by a plain re-statement of the network."""

import math
import os
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from minidiff import pretrained
from minidiff.pretrained import LAYOUTS, load, preset, presets, read_into
from minidiff.recipes import load_recipe
from minidiff.schedule import linear_schedule
from minidiff.systems.class_conditional import ClassConditional
from minidiff.systems.classifier import NoisyClassifier
from minidiff.systems.upsampler import Small, Upsampler
from minidiff.systems.zoo import build

MILLIONS = {  # as published, to the last digit given
    "adm-imagenet64": "295.90",
    "adm-imagenet128": "421.53",
    "adm-imagenet256": "553.84",
    "adm-imagenet256-uncond": "552.81",
    "adm-imagenet512": "559.00",
    "adm-lsun-bedroom": "552.8",
    "adm-lsun-cat": "552.8",
    "adm-lsun-horse": "552.8",
    "adm-lsun-horse-nodropout": "552.8",
    "adm-upsampler-64-256": "311.80",
    "adm-upsampler-128-512": "308.84",
    "adm-classifier-64": "65.44",
    "adm-classifier-128": "42.57",
    "adm-classifier-256": "54.10",
    "adm-classifier-512": "54.45",
}
TINY = [
    "network.size=16", "network.channels=16", "network.channel_mult=[0.5,1,2]", "network.blocks=2",
    "network.attention=[8,4]", "network.groups=4", "network.head_channels=8",
]  # fmt: skip


# --- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MILLIONS))
def test_published_parameter_counts(name):
    digits = len(MILLIONS[name].partition(".")[2])
    assert f"{preset(name).parameters / 1e6:.{digits}f}" == MILLIONS[name]


def test_the_table_of_presets_is_complete():
    assert set(presets()) == set(MILLIONS)
    assert len({p.url for p in presets().values()}) == len(MILLIONS)
    new_order = [name for name, p in presets().items() if p.layout == "adm"]
    assert new_order == ["adm-imagenet64"]
    kinds = {"classifier": NoisyClassifier, "upsampler": Upsampler}
    for name in presets():
        kind = kinds.get(name.split("-")[1], ClassConditional)
        assert type(build(load_recipe(name), empty=True)) is kind
    with pytest.raises(ValueError, match="no preset 'adm-imagenet65': did you mean 'adm-imagenet64'"):
        preset("adm-imagenet65")


def test_recipes_are_as_published():
    """Tables 11 to 13 of Dhariwal and Nichol 2021."""
    for name in presets():
        recipe, kind = load_recipe(name), name.split("-")[1]
        plan, network = recipe.training, recipe.network
        assert plan.betas == (0.9, 0.999) and plan.clip is None and plan.warmup == 0
        assert recipe.schedule.name == ("clipped_cosine" if network.size == 64 else "linear")
        assert network.scale_shift and network.resample_blocks and network.groups == 32
        assert network.dropout == (0.1 if name == "adm-imagenet64" or re.search(r"lsun-\w+$", name) else 0.0)
        if kind != "classifier":
            assert (plan.final_lr, plan.weight_decay, max(plan.ema)) == (1.0, 0.0, 0.9999)
            assert (recipe.predicts, recipe.variance, recipe.label_dropout) == ("eps", "learned_range", 0.0)
    steps = {name: load_recipe(name).training.steps // 1000 for name in presets()}
    assert [steps[f"adm-lsun-{s}"] for s in ("cat", "horse", "bedroom")] == [200, 250, 500]
    assert [steps[f"adm-imagenet{s}"] for s in (64, 128, 256, 512)] == [540, 4360, 1980, 1940]
    assert [steps[f"adm-classifier-{s}"] for s in (64, 128, 256, 512)] == [300, 300, 500, 500]
    assert [steps[f"adm-upsampler-{s}"] for s in ("64-256", "128-512")] == [500, 1050]
    batches = {name: load_recipe(name).training.batch for name in presets()}
    assert {n: b for n, b in batches.items() if b != 256} == {"adm-imagenet64": 2048, "adm-classifier-64": 1024}


# --- the network, stated again --------------------------------------------------------------------------------------


def attend(qkv, heads, legacy):
    """Attention of (B, 3C, L). Legacy: each head holds its q, k, v; else q, k, v hold their heads."""
    b, width, length = qkv.shape
    d = width // (3 * heads)
    if legacy:
        q, k, v = qkv.reshape(b, heads, 3, d, length).unbind(2)
    else:
        q, k, v = qkv.reshape(b, 3, heads, d, length).unbind(1)
    weight = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(d)).softmax(-1)
    return torch.einsum("bhij,bhdj->bhdi", weight, v).reshape(b, heads * d, length)


class Plain:
    """A network of ADM evaluated from its state dict alone, float64: no module, no option but what keys cannot say."""

    def __init__(self, tensors, levels, blocks, groups, head_width, legacy):
        self.w = {k: v.double() for k, v in tensors.items()}
        self.levels, self.blocks, self.groups, self.head_width, self.legacy = levels, blocks, groups, head_width, legacy

    def affine(self, key, x):
        return F.linear(x, self.w[f"{key}.weight"].flatten(1), self.w[f"{key}.bias"])

    def conv(self, key, x):
        weight = self.w[f"{key}.weight"]
        return F.conv2d(x, weight, self.w[f"{key}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, key, x):
        flat = x.reshape(len(x), self.groups, -1)
        flat = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        return flat.reshape(x.shape) * self.w[f"{key}.weight"].reshape(shape) + self.w[f"{key}.bias"].reshape(shape)

    def block(self, key, x, told, resample):
        silu = lambda h: h * torch.sigmoid(h)
        if f"{key}.qkv.weight" in self.w:
            flat = x.flatten(2)
            qkv = self.affine(f"{key}.qkv", self.norm(f"{key}.norm", flat).mT).mT
            out = attend(qkv, x.shape[1] // self.head_width, self.legacy)
            return x + self.affine(f"{key}.proj_out", out.mT).mT.reshape(x.shape)
        change = {
            None: lambda h: h,
            "down": lambda h: (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4,
            "up": lambda h: h.repeat_interleave(2, -1).repeat_interleave(2, -2),
        }[resample]
        h = self.conv(f"{key}.in_layers.2", change(silu(self.norm(f"{key}.in_layers.0", x))))
        scale, shift = self.affine(f"{key}.emb_layers.1", silu(told))[:, :, None, None].chunk(2, 1)
        h = self.conv(f"{key}.out_layers.3", silu(self.norm(f"{key}.out_layers.0", h) * (1 + scale) + shift))
        x = change(x)
        return h + (self.conv(f"{key}.skip_connection", x) if f"{key}.skip_connection.weight" in self.w else x)

    def stage(self, key, x, told, resample=None):
        parts = sorted({k[len(key) + 1 :].split(".")[0] for k in self.w if k.startswith(f"{key}.")}, key=int)
        for part in parts:
            last = resample if part == parts[-1] else None
            x = self.block(f"{key}.{part}", x, told, last)
        return x

    def encode(self, x, t, labels):
        width = self.w["time_embed.0.weight"].shape[1]
        angles = t.double()[:, None] * 10000.0 ** (-torch.arange(width // 2).double() / (width // 2))
        told = self.affine("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        told = self.affine("time_embed.2", told * torch.sigmoid(told))
        if labels is not None:
            told = told + self.w["label_emb.weight"][labels]
        skips = [self.conv("input_blocks.0.0", x.double())]
        for i in range(1, self.levels * (self.blocks + 1)):
            resample = "down" if i % (self.blocks + 1) == 0 else None
            skips.append(self.stage(f"input_blocks.{i}", skips[-1], told, resample))
        return self.stage("middle_block", skips[-1], told), told, skips

    def unet(self, x, t, labels=None):
        h, told, skips = self.encode(x, t, labels)
        count = self.levels * (self.blocks + 1)
        for i in range(count):
            resample = "up" if (i + 1) % (self.blocks + 1) == 0 and i + 1 < count else None
            h = self.stage(f"output_blocks.{i}", torch.cat([h, skips.pop()], 1), told, resample)
        h = self.norm("out.0", h)
        return self.conv("out.2", h * torch.sigmoid(h))

    def classifier(self, x, t):
        h = self.norm("out.0", self.encode(x, t, None)[0])
        h = (h * torch.sigmoid(h)).flatten(2)
        h = torch.cat([h.mean(-1, keepdim=True), h], -1) + self.w["out.2.positional_embedding"]
        h = attend(self.affine("out.2.qkv_proj", h.mT).mT, h.shape[1] // self.head_width, legacy=False)
        return self.affine("out.2.c_proj", h[..., 0])


def published(system, seed=0):
    """A state dict such as a release would hold: every tensor random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator) * (v.shape[1:].numel() or 1) ** -0.5
        for k, v in system.network.state_dict().items()
    }


def recipe_of(name, *changes):
    return load_recipe(name, [*TINY, *changes])


def plain_of(recipe, tensors, layout):
    network = recipe.network
    widths = (len(network.channel_mult), network.blocks, network.groups, network.head_channels)
    return Plain(tensors, *widths, legacy=layout == "adm-legacy")


@pytest.mark.parametrize("name", ["adm-imagenet64", "adm-imagenet256", "adm-imagenet512", "adm-lsun-cat"])
def test_converted_weights_compute_the_original_function(name):
    recipe = recipe_of(name, *["network.classes=7"] * ("imagenet" in name))
    tensors = published(build(recipe, empty=True))
    system = read_into(build(recipe, empty=True), LAYOUTS[preset(name).layout], tensors, name)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999])
    labels = torch.tensor([0, 3, 6]) if system.labelled else None
    expected = plain_of(recipe, tensors, preset(name).layout).unet(x, t, labels)
    prediction = system(x, system.schedule.level(t), labels)
    torch.testing.assert_close(prediction.eps.double(), expected[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.fraction.double(), (expected[:, 3:] + 1) / 2, rtol=1e-4, atol=1e-4)
    other = "adm" if preset(name).layout == "adm-legacy" else "adm-legacy"
    wrong = plain_of(recipe, tensors, other).unet(x, t, labels)
    assert (wrong - expected).abs().max() > 0.05, "the order of attention rows matters to this test"


def test_converted_upsamplers_compute_the_original_function():
    recipe = recipe_of("adm-upsampler-64-256", "network.classes=7")
    tensors = published(build(recipe, empty=True))
    system = read_into(build(recipe, empty=True), LAYOUTS["adm-legacy"], tensors, "tiny")
    x, small, t, labels = (
        torch.randn(2, 3, 16, 16),
        torch.randn(2, 3, 4, 4),
        torch.tensor([3, 900]),
        torch.tensor([1, 6]),
    )
    # bilinear by 4: output pixel i lies at (i + 1/2) / 4 - 1/2 of the input, edges repeated
    place = ((torch.arange(16.0) + 0.5) / 4 - 0.5).clamp(0, 3)
    weight = (1 - (place[:, None] - torch.arange(4.0)).abs()).clamp(min=0)
    large = torch.einsum("ik,jl,bckl->bcij", weight, weight, small)
    expected = plain_of(recipe, tensors, "adm-legacy").unet(torch.cat([x, large], 1), t, labels)
    prediction = system(x, system.schedule.level(t), Small(labels, small))
    torch.testing.assert_close(prediction.eps.double(), expected[:, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["adm-classifier-64", "adm-classifier-512"])
def test_converted_classifiers_compute_the_original_function(name):
    """The blocks have the legacy order, the attention pool has not."""
    recipe = recipe_of(name, "network.out_channels=7")
    tensors = published(build(recipe, empty=True))
    system = read_into(build(recipe, empty=True), LAYOUTS[preset(name).layout], tensors, name)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999])
    expected = plain_of(recipe, tensors, "adm-legacy").classifier(x, t).log_softmax(1)
    found = system.log_prob_label(x, system.schedule.level(t))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    recipe = recipe_of("adm-imagenet64", "network.classes=7")
    return recipe, published(build(recipe, empty=True))


def read(tiny, source):
    return read_into(build(tiny[0], empty=True), LAYOUTS["adm"], source, "preset 'tiny'")


def test_files_of_either_kind_and_half_precision(tiny, tmp_path):
    tensors = tiny[1]
    torch.save(tensors, tmp_path / "new.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save({k: v.half() for k, v in tensors.items()}, tmp_path / "half.pt")
    for file in ("new.pt", "old.pt", "model.safetensors", "half.pt"):
        system = read(tiny, tmp_path / file)
        state = system.network.state_dict()
        assert not system.training and {v.dtype for v in state.values()} == {torch.float32}
        assert not any(p.requires_grad for p in system.parameters())
        for k, v in tensors.items():
            assert torch.equal(state[k], v.half().float() if file == "half.pt" else v)


def test_a_state_dict_is_copied(tiny):
    system = read(tiny, tiny[1])
    with torch.no_grad():
        system.network.out[2].weight.zero_()
    assert tiny[1]["out.2.weight"].any()


def test_every_wrong_tensor_is_named(tiny):
    tensors = dict(tiny[1])
    del tensors["label_emb.weight"]
    tensors["extra"] = torch.zeros(2)
    tensors["out.2.bias"] = torch.zeros(3)
    tensors["out.0.bias"] = tensors["out.0.bias"].long()
    with pytest.raises(ValueError) as error:
        read(tiny, tensors)
    assert str(error.value) == (
        "the state dict does not fit preset 'tiny'; missing: label_emb.weight; unexpected: extra; "
        "of another shape: out.2.bias (3,) for (6,); no floating-point numbers: out.0.bias"
    )


def test_a_wholly_different_file_is_named_in_one_readable_line():
    recipe = recipe_of("adm-classifier-64", "network.out_channels=7")
    with pytest.raises(ValueError, match=r"does not fit preset 'adm-imagenet64'; missing: .* and \d+ more;") as error:
        load("adm-imagenet64", published(build(recipe, empty=True)))
    assert len(str(error.value)) < 2500


class Unsafe:
    def __reduce__(self):
        return os.system, ("true",)


def test_files_that_cannot_be_read(tiny, tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(ValueError, match=r"no checkpoint at .*x\.pt"):
        read(tiny, path)
    path.write_bytes(pickle.dumps(Unsafe(), protocol=2))
    with pytest.raises(ValueError, match="reading it could run code"):
        read(tiny, path)
    torch.save({"model": Unsafe()}, path)
    with pytest.raises(ValueError, match="reading it could run code"):
        read(tiny, path)
    torch.save(tiny[1], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        read(tiny, path)
    save_file(tiny[1], path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="is damaged, or no checkpoint"):
        read(tiny, path)
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match="checkpoint"):
        read(tiny, path)
    torch.save({"state_dict": tiny[1], "epoch": 3}, path)
    with pytest.raises(ValueError, match="holds more than tensors by name: 'state_dict' is a dict"):
        read(tiny, path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="holds a Tensor, not tensors by name"):
        read(tiny, path)


def test_a_released_size_loads_by_name():
    """The smallest of them, 42.57 million numbers that take no memory until they are read."""
    name = "adm-classifier-128"
    empty = build(load_recipe(name), empty=True).network.state_dict()
    system = load(name, {k: torch.zeros(()).expand(v.shape) for k, v in empty.items()})
    assert isinstance(system, NoisyClassifier) and system.n_classes == 1000 and system.shape == (3, 128, 128)
    assert next(system.parameters()).device.type == "cpu"


def test_nothing_is_fetched_unasked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("fetched")

    monkeypatch.setattr(pretrained, "fetch", refuse)
    with pytest.raises(ValueError, match=r"no checkpoint at 64x64_diffusion\.pt"):
        load("adm-imagenet64", "64x64_diffusion.pt")


def test_the_variance_of_the_last_step_is_floored_as_in_released_models():
    """beta-tilde is zero there; the value one step earlier stands in, -9.82 for the linear schedule."""
    system = build(recipe_of("adm-imagenet256"), empty=True)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    assert math.log(system._floor) == pytest.approx(math.log(betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])))
    assert math.log(system._floor) == pytest.approx(-9.82, abs=0.005)
    torch.testing.assert_close(system.schedule.betas, linear_schedule().betas)
