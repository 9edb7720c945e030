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
from minidiff.schedule import linear_schedule, respaced
from minidiff.systems.classifier import NoisyClassifier
from minidiff.systems.clip import CLIP
from minidiff.systems.diffusion import Diffusion

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
    "glide-base": "385.03",
    "glide-upsampler": "398.36",
    "glide-base-inpaint": "385.04",
    "glide-upsampler-inpaint": "398.37",
    "glide-clip": "158.12",  # 71.68 and 86.44, see tests/models/test_clip_networks.py
}
KARLOS = {  # exact counts: tests/models/test_unclip_conformance.py
    "karlo-prior": "1022.03",
    "karlo-decoder": "893.32",
    "karlo-up256": "691.58",
    "karlo-up256-last": "691.58",
}
LATENTS = {  # of the U-Nets; autoencoders and text towers: tests/test_stable.py
    "sd15": "859.520964",
    "sd15-inpaint": "859.535364",
    "sd2-base": "865.91",
    "sd2": "865.91",
    "ldm-ffhq": "274.1",
    "ldm-churches": "295.0",
    "ldm-cin256": "401.4",  # 400.9, and the classes
    "ldm-inpaint": "387.2",
    "ldm-sr": "113.6",
    "ldm-txt2img": "872.3",
}
MILLIONS |= LATENTS | KARLOS | {f"{name}-diffusers": count for name, count in KARLOS.items()}
GLIDES = {  # what each is told, in the order of its channels
    "glide-base": ["caption"],
    "glide-upsampler": ["caption", "low_res"],
    "glide-base-inpaint": ["caption", "known"],
    "glide-upsampler-inpaint": ["caption", "known", "low_res"],
    "glide-clip": None,
}
BASE, UP = ((1, 2, 3, 4), 3, 64), ((1, 1, 2, 2, 4, 4), 2, 256)
RELEASED = {  # channels that enter; width of each level, blocks of a level, size
    "glide-base": (3, *BASE),
    "glide-upsampler": (6, *UP),
    "glide-base-inpaint": (7, *BASE),
    "glide-upsampler-inpaint": (10, *UP),
}
ADMS = [name for name in MILLIONS if name.startswith("adm")]
TINY = [
    "network.size=16", "network.channels=16", "network.channel_mult=[0.5,1,2]", "network.blocks=2",
    "network.attention=[8,4]", "network.groups=4", "network.head_channels=8",
]  # fmt: skip
TINY_TEXT = [
    "data.tokenizer=scenes", "network.text.vocabulary=52", "network.text.context=12", "network.text.width=24",
    "network.text.layers=2", "network.text.heads=3", "network.channel_mult=[1,2,2]",
]  # fmt: skip


# --- presets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MILLIONS))
def test_published_parameter_counts(name):
    digits = len(MILLIONS[name].partition(".")[2])
    assert f"{preset(name).parameters / 1e6:.{digits}f}" == MILLIONS[name]


def test_the_table_of_presets_is_complete():
    assert set(presets()) == set(MILLIONS)
    assert len({url for p in presets().values() for url in p.urls.values()}) == len(MILLIONS) + 2
    new_order = [name for name, p in presets().items() if p.layout == "adm"]
    assert new_order == ["adm-imagenet64"]
    for name in KARLOS:
        assert preset(name).recipe == preset(f"{name}-diffusers").recipe == load_recipe(name)
    for name in (*ADMS, *GLIDES):
        system, kind = load_recipe(name).build(empty=True), name.split("-")[1]
        assert type(system) is {"classifier": NoisyClassifier, "clip": CLIP}.get(kind, Diffusion)
        if isinstance(system, Diffusion):
            label = [] if "lsun" in name or "uncond" in name else ["label"]
            told = GLIDES.get(name) or label + ["low_res"] * (kind == "upsampler")
            assert [part.key for part in system.parts] == told
    with pytest.raises(ValueError, match="no preset 'adm-imagenet65': did you mean 'adm-imagenet64'"):
        preset("adm-imagenet65")


def test_recipes_are_as_published():
    """Tables 11 to 13 of Dhariwal and Nichol 2021."""
    for name in ADMS:
        recipe, kind = load_recipe(name), name.split("-")[1]
        plan, network = recipe.training, recipe.network
        assert plan.betas == (0.9, 0.999) and plan.clip is None and plan.warmup == 0
        assert recipe.schedule.name == ("clipped_cosine" if network.size == 64 else "linear")
        assert network.scale_shift and network.resample_blocks and network.groups == 32
        assert network.dropout == (0.1 if name == "adm-imagenet64" or re.search(r"lsun-\w+$", name) else 0.0)
        if kind != "classifier":
            assert (plan.final_lr, plan.weight_decay, max(plan.ema)) == (1.0, 0.0, 0.9999)
            assert (recipe.options.predicts, recipe.options.variance, recipe.options.drop) == ("eps", "learned", 0.0)
    steps = {name: load_recipe(name).training.steps // 1000 for name in ADMS}
    assert [steps[f"adm-lsun-{s}"] for s in ("cat", "horse", "bedroom")] == [200, 250, 500]
    assert [steps[f"adm-imagenet{s}"] for s in (64, 128, 256, 512)] == [540, 4360, 1980, 1940]
    assert [steps[f"adm-classifier-{s}"] for s in (64, 128, 256, 512)] == [300, 300, 500, 500]
    assert [steps[f"adm-upsampler-{s}"] for s in ("64-256", "128-512")] == [500, 1050]
    batches = {name: load_recipe(name).training.batch for name in ADMS}
    assert {n: b for n, b in batches.items() if b != 256} == {"adm-imagenet64": 2048, "adm-classifier-64": 1024}


def released_shapes(enters, mult, blocks, size, channels=192, width=512, layers=16, vocabulary=50257, context=128):
    """Names and shapes of a released GLIDE, written down from the description of its layout."""
    shapes = {}

    def affine(key, rows, columns, kernel=()):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = (rows, columns, *kernel), (rows,)

    def norm(key, features):
        shapes[f"{key}.weight"] = shapes[f"{key}.bias"] = (features,)

    def res(key, a, b):
        norm(f"{key}.in_layers.0", a)
        affine(f"{key}.in_layers.2", b, a, (3, 3))
        affine(f"{key}.emb_layers.1", 2 * b, 4 * channels)
        norm(f"{key}.out_layers.0", b)
        affine(f"{key}.out_layers.3", b, b, (3, 3))
        if a != b:
            affine(f"{key}.skip_connection", b, a, (1, 1))

    def attended(key, a):
        norm(f"{key}.norm", a)
        for part, rows, columns in (("qkv", 3 * a, a), ("encoder_kv", 2 * a, width), ("proj_out", a, a)):
            affine(f"{key}.{part}", rows, columns, (1,))

    shapes["token_embedding.weight"] = (vocabulary, width)
    shapes["positional_embedding"] = shapes["padding_embedding"] = (context, width)
    for i in range(layers):
        key = f"transformer.resblocks.{i}"
        norm(f"{key}.ln_1", width), norm(f"{key}.ln_2", width)
        affine(f"{key}.attn.c_qkv", 3 * width, width), affine(f"{key}.attn.c_proj", width, width)
        affine(f"{key}.mlp.c_fc", 4 * width, width), affine(f"{key}.mlp.c_proj", width, 4 * width)
    norm("final_ln", width)
    affine("transformer_proj", 4 * channels, width)
    affine("time_embed.0", 4 * channels, channels), affine("time_embed.2", 4 * channels, 4 * channels)

    affine("input_blocks.0.0", channels, enters, (3, 3))
    now, kept, at = channels, [channels], 1
    for level, m in enumerate(mult):
        for _ in range(blocks):
            res(f"input_blocks.{at}.0", now, m * channels)
            now = m * channels
            if size >> level in (32, 16, 8):
                attended(f"input_blocks.{at}.1", now)
            kept.append(now)
            at += 1
        if level < len(mult) - 1:
            res(f"input_blocks.{at}.0", now, now)
            kept.append(now)
            at += 1
    res("middle_block.0", now, now), attended("middle_block.1", now), res("middle_block.2", now, now)
    for at in range(len(kept)):
        level, place = len(mult) - 1 - at // (blocks + 1), at % (blocks + 1)
        res(f"output_blocks.{at}.0", now + kept.pop(), mult[level] * channels)
        now, part = mult[level] * channels, 1
        if size >> level in (32, 16, 8):
            attended(f"output_blocks.{at}.1", now)
            part = 2
        if level and place == blocks:
            res(f"output_blocks.{at}.{part}", now, now)
    norm("out.0", now)
    affine("out.2", 6, now, (3, 3))
    return shapes


def count(shapes, *parts):
    return sum(math.prod(shape) for key, shape in shapes.items() if not parts or key.split(".")[0] in parts)


@pytest.mark.parametrize("name", list(RELEASED))
def test_glides_names_and_shapes_are_the_released_ones(name):
    chosen = preset(name)
    own = chosen.recipe.build(empty=True).network.state_dict()
    found = {LAYOUTS[chosen.layout].published(key): tuple(value.shape) for key, value in own.items()}
    expected = released_shapes(*RELEASED[name])
    assert found == expected and len(found) == len(own)
    assert f"{count(expected) / 1e6:.2f}" == MILLIONS[name]
    text = ("token_embedding", "positional_embedding", "padding_embedding", "transformer", "final_ln")
    assert round(count(expected, *text) / 1e6, 1) == 76.3 and round(count(expected, "transformer") / 1e6, 2) == 50.44


def test_glide_at_the_size_of_the_paper():
    """The released code at the paper's width: 2242 + 1312 millions, 3.5 billion in the paper; its upsampler 1642, 1.5
    billion in the paper, which does not say how many layers of text it has."""
    networks = [load_recipe(f"glide-paper-{name}").build(empty=True).network for name in ("base", "upsampler")]
    base, upsampler = (sum(p.numel() for p in network.parameters()) / 1e6 for network in networks)
    text = sum(p.numel() for n, p in networks[0].text.named_parameters() if "transformer_proj" not in n) / 1e6
    assert (round(base - text), round(text), round(base), round(upsampler)) == (2242, 1312, 3554, 1642)


def test_glides_recipes_are_as_published():
    """Defaults of the released code; section 4 of Nichol et al. 2021."""
    for name in RELEASED:
        recipe, up = load_recipe(name), "upsampler" in name
        network = recipe.network
        assert recipe.schedule.name == ("linear" if up else "clipped_cosine") and recipe.schedule.T == 1000
        options = recipe.options
        assert (options.predicts, options.variance, recipe.data.tokenizer) == ("eps", "learned", "glide")
        assert network.scale_shift and network.resample_blocks and network.groups == 32 and network.dropout == 0.1
        assert options.drop == (0.0 if up else 0.2) and not recipe.data.mirror, "left and right are words"
    plans = {name: load_recipe(f"glide-{name}").training for name in ("base", "upsampler", "paper-base")}
    assert {name: (p.steps, p.batch) for name, p in plans.items()} == {
        "base": (2_500_000, 2048), "upsampler": (1_600_000, 512), "paper-base": (2_500_000, 2048),
    }  # fmt: skip


def test_presets_are_sampled_as_published():
    """The READMEs and notebooks of guided-diffusion and glide-text2im; table 14 of Dhariwal and Nichol 2021."""
    way = {name: found.recipe.sampling for name, found in presets().items()}
    for name in ("adm-classifier-64", "glide-clip"):
        assert way.pop(name) is None, "these draw nothing"
    scales = {size: way[f"adm-imagenet{size}"].classifier_scales for size in ("64", "128", "256", "256-uncond", "512")}
    assert scales == {
        "64": {"250": 1.0}, "128": {"250": 0.5, "ddim25": 1.25}, "256": {"250": 1.0, "ddim25": 2.5},
        "256-uncond": {"250": 10.0}, "512": {"250": 4.0, "ddim25": 9.0},
    }  # fmt: skip
    for name, found in way.items():
        if name.startswith("adm-") and "classifier" not in name:
            steps = "1000" if "lsun" in name else "250"
            assert (found.steps, found.sampler, found.temperature) == (steps, "ancestral", 1.0), name
            assert found.guide == ("adm" if "imagenet" in name else None) and found.scale is None
    glide = {name: way[f"glide-{name}"] for name in ("base", "upsampler", "base-inpaint", "upsampler-inpaint")}
    assert {n: (g.steps, g.sampler, g.scale, g.temperature) for n, g in glide.items()} == {
        "base": ("100", "ancestral", 3.0, 1.0), "upsampler": ("fast27", "ddim", 1.0, 0.997),
        "base-inpaint": ("100", "ancestral", 5.0, 1.0), "upsampler-inpaint": ("fast27", "ancestral", 1.0, 0.997),
    }  # fmt: skip


def test_glides_fast_steps():
    """Sections of 10, 10, 3, 2, 2 of a thousand times, but not the noisiest of all."""
    system = load_recipe("glide-upsampler").build(empty=True)
    times = [level.time for level in respaced(system.schedule, preset("glide-upsampler").recipe.sampling.steps)]
    even = lambda first, last, n: [round(first + i * (last - first) / (n - 1)) for i in range(n)]
    sections = [even(200 * i, 200 * i + 199, n) for i, n in enumerate((10, 10, 3, 2, 2))]
    expected = [t for section in sections for t in section]
    assert expected[-1] == 999 and len(expected) == 27
    assert times == [997, *expected[-2::-1], -1]


# --- the network, stated again --------------------------------------------------------------------------------------


def split(fused, parts, heads, legacy):
    """(B, parts C, L) into ``parts`` of (B, heads, C / heads, L). Legacy: each head holds its parts, else reversed."""
    if legacy:
        return fused.unflatten(1, (heads, parts, -1)).unbind(2)
    return fused.unflatten(1, (parts, heads, -1)).unbind(1)


def attend(qkv, heads, legacy, kv=None):
    """Attention of (B, 3C, L), and to further keys and values (B, 2C, K) that stand before its own."""
    q, k, v = split(qkv, 3, heads, legacy)
    if kv is not None:
        k, v = (torch.cat(pair, -1) for pair in zip(split(kv, 2, heads, legacy), (k, v), strict=True))
    weight = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(q.shape[2])).softmax(-1)
    return torch.einsum("bhij,bhdj->bhdi", weight, v).flatten(1, 2)


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
            kv = self.affine(f"{key}.encoder_kv", self.sequence).mT if f"{key}.encoder_kv.weight" in self.w else None
            out = attend(qkv, x.shape[1] // self.head_width, self.legacy, kv)
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

    def encode(self, x, t, vector=0.0):
        width = self.w["time_embed.0.weight"].shape[1]
        angles = t.double()[:, None] * 10000.0 ** (-torch.arange(width // 2).double() / (width // 2))
        told = self.affine("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))
        told = self.affine("time_embed.2", told * torch.sigmoid(told)) + vector
        skips = [self.conv("input_blocks.0.0", x.double())]
        for i in range(1, self.levels * (self.blocks + 1)):
            resample = "down" if i % (self.blocks + 1) == 0 else None
            skips.append(self.stage(f"input_blocks.{i}", skips[-1], told, resample))
        return self.stage("middle_block", skips[-1], told), told, skips

    def unet(self, x, t, labels=None):
        return self.decode(x, t, 0.0 if labels is None else self.w["label_emb.weight"][labels])

    def decode(self, x, t, vector):
        h, told, skips = self.encode(x, t, vector)
        count = self.levels * (self.blocks + 1)
        for i in range(count):
            resample = "up" if (i + 1) % (self.blocks + 1) == 0 and i + 1 < count else None
            h = self.stage(f"output_blocks.{i}", torch.cat([h, skips.pop()], 1), told, resample)
        h = self.norm("out.0", h)
        return self.conv("out.2", h * torch.sigmoid(h))

    def classifier(self, x, t):
        h = self.norm("out.0", self.encode(x, t)[0])
        h = (h * torch.sigmoid(h)).flatten(2)
        h = torch.cat([h.mean(-1, keepdim=True), h], -1) + self.w["out.2.positional_embedding"]
        h = attend(self.affine("out.2.qkv_proj", h.mT).mT, h.shape[1] // self.head_width, legacy=False)
        return self.affine("out.2.c_proj", h[..., 0])


class PlainGlide(Plain):
    """GLIDE's network from a released state dict: ADM's, told a vector and attending to a sequence, both from text."""

    def __init__(self, tensors, *shape, text_heads, legacy=True):
        super().__init__(tensors, *shape, legacy=legacy)
        self.text_heads = text_heads

    def layer_norm(self, key, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.w[f"{key}.weight"] + self.w[f"{key}.bias"]

    def text(self, captions):
        """Lists of tokens -> the vector (B, 4C), and the sequence (B, L, W)."""
        rows = []
        for caption in captions:
            row = self.w["padding_embedding"].clone()
            for place, token in enumerate(caption):
                row[place] = self.w["token_embedding.weight"][token] + self.w["positional_embedding"][place]
            rows.append(row)
        x = torch.stack(rows)
        for i in range(len({k.split(".")[2] for k in self.w if k.startswith("transformer.resblocks.")})):
            key = f"transformer.resblocks.{i}"
            qkv = self.affine(f"{key}.attn.c_qkv", self.layer_norm(f"{key}.ln_1", x)).mT
            x = x + self.affine(f"{key}.attn.c_proj", attend(qkv, self.text_heads, self.legacy).mT)
            h = self.affine(f"{key}.mlp.c_fc", self.layer_norm(f"{key}.ln_2", x))
            x = x + self.affine(f"{key}.mlp.c_proj", h * (1 + torch.erf(h / math.sqrt(2))) / 2)
        x = self.layer_norm("final_ln", x)
        return self.affine("transformer_proj", x[:, -1]), x

    def glide(self, x, t, captions):
        vector, self.sequence = self.text(captions)
        return self.decode(x, t, vector)


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
    tensors = published(recipe.build(empty=True))
    system = read_into(recipe.build(empty=True), LAYOUTS[preset(name).layout], tensors, name)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999])
    labels = torch.tensor([0, 3, 6]) if system.part("label") else None
    expected = plain_of(recipe, tensors, preset(name).layout).unet(x, t, labels)
    prediction = system(x, system.schedule.level(t), None if labels is None else system.condition(label=labels))
    torch.testing.assert_close(prediction.eps.double(), expected[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.fraction.double(), (expected[:, 3:] + 1) / 2, rtol=1e-4, atol=1e-4)
    other = "adm" if preset(name).layout == "adm-legacy" else "adm-legacy"
    wrong = plain_of(recipe, tensors, other).unet(x, t, labels)
    assert (wrong - expected).abs().max() > 0.05, "the order of attention rows matters to this test"


def enlarged(small):
    """4x4 to 16x16, bilinearly: output pixel i lies at (i + 1/2) / 4 - 1/2 of the input, edges repeated."""
    place = ((torch.arange(16.0) + 0.5) / 4 - 0.5).clamp(0, 3)
    weight = (1 - (place[:, None] - torch.arange(4.0)).abs()).clamp(min=0)
    return torch.einsum("ik,jl,bckl->bcij", weight, weight, small)


def test_converted_upsamplers_compute_the_original_function():
    recipe = recipe_of("adm-upsampler-64-256", "network.classes=7")
    tensors = published(recipe.build(empty=True))
    system = read_into(recipe.build(empty=True), LAYOUTS["adm-legacy"], tensors, "tiny")
    x, small, t, labels = (
        torch.randn(2, 3, 16, 16),
        torch.randn(2, 3, 4, 4),
        torch.tensor([3, 900]),
        torch.tensor([1, 6]),
    )
    expected = plain_of(recipe, tensors, "adm-legacy").unet(torch.cat([x, enlarged(small)], 1), t, labels)
    prediction = system(x, system.schedule.level(t), system.condition(label=labels, low_res=small))
    torch.testing.assert_close(prediction.eps.double(), expected[:, :3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["adm-classifier-64", "adm-classifier-512"])
def test_converted_classifiers_compute_the_original_function(name):
    """The blocks have the legacy order, the attention pool has not."""
    recipe = recipe_of(name, "network.out_channels=7")
    tensors = published(recipe.build(empty=True))
    system = read_into(recipe.build(empty=True), LAYOUTS[preset(name).layout], tensors, name)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 500, 999])
    expected = plain_of(recipe, tensors, "adm-legacy").classifier(x, t).log_softmax(1)
    found = system.log_prob_label(x, system.schedule.level(t))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def released(name, seed=0):
    """A tiny recipe of GLIDE, and a state dict in the layout of the release."""
    recipe = recipe_of(name, *TINY_TEXT)
    own = published(recipe.build(empty=True), seed)
    return recipe, {key.removeprefix("text."): value for key, value in own.items()}


def plain_glide(recipe, tensors, legacy=True):
    network = recipe.network
    widths = (len(network.channel_mult), network.blocks, network.groups, network.head_channels)
    return PlainGlide(tensors, *widths, text_heads=network.text.heads, legacy=legacy)


@pytest.mark.parametrize("name", list(RELEASED))
def test_converted_glides_compute_the_original_function(name, monkeypatch):
    recipe, tensors = released(name)
    monkeypatch.setattr(pretrained, "load_recipe", lambda asked: {name: recipe}[asked])
    system = load(name, tensors)
    generator = torch.Generator().manual_seed(1)
    x, image = (torch.randn(3, 3, 16, 16, generator=generator) for _ in range(2))
    small, mask = torch.randn(3, 3, 4, 4, generator=generator), torch.rand(3, 1, 16, 16, generator=generator).round()
    t, captions = torch.tensor([0, 500, 999]), [[3, 1, 4, 1, 5], [], list(range(40, 52))]
    tokens = torch.tensor([caption + [-1] * (12 - len(caption)) for caption in captions])

    enters, told = [x], {"caption": tokens}
    if "inpaint" in name:
        enters, told["known"] = [*enters, image * mask, mask], (image, mask)
    if "upsampler" in name:
        enters, told["low_res"] = [*enters, enlarged(small)], small
    expected = plain_glide(recipe, tensors).glide(torch.cat(enters, 1), t, captions)
    prediction = system(x, system.schedule.level(t), system.condition(**told))
    torch.testing.assert_close(prediction.eps.double(), expected[:, :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prediction.fraction.double(), (expected[:, 3:] + 1) / 2, rtol=1e-4, atol=1e-4)


def test_every_order_of_rows_matters_to_this():
    """With legacy rows taken for new ones in the text, the image or the words' keys alone, the function is another."""
    recipe, tensors = released("glide-base")
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    captions = [[3, 1, 4, 1, 5], [9, 2]]
    expected = plain_glide(recipe, tensors).glide(x, t, captions)
    for part, n in (("c_qkv", 3), ("qkv", 3), ("encoder_kv", 2)):
        spoilt = dict(tensors)
        for key in (k for k in tensors if k.split(".")[-2:-1] == [part]):
            heads = recipe.network.text.heads if part == "c_qkv" else len(tensors[key]) // (n * 8)
            spoilt[key] = tensors[key].unflatten(0, (n, heads, -1)).transpose(0, 1).flatten(0, 2)
        wrong = plain_glide(recipe, spoilt).glide(x, t, captions)
        assert (wrong - expected).abs().max() > 0.01, part
    assert (plain_glide(recipe, tensors, legacy=False).glide(x, t, captions) - expected).abs().max() > 0.05


def test_the_text_of_the_restatement_is_torchs_own_transformer():
    """Legacy rows are each head's q, k, v; the vector is read off the last place, which here is padding."""
    recipe, tensors = released("glide-base")
    plain = plain_glide(recipe, tensors)
    vector, sequence = plain.text([[3, 1], []])
    assert sequence.shape == (2, 12, 24) and vector.shape == (2, 64)
    torch.testing.assert_close(vector, plain.affine("transformer_proj", sequence[:, 11]))
    layers = [torch.nn.TransformerEncoderLayer(24, 3, 96, 0, "gelu", batch_first=True, norm_first=True) for _ in "12"]
    x = plain.w["padding_embedding"].repeat(2, 1, 1)
    x[0, :2] = plain.w["token_embedding.weight"][[3, 1]] + plain.w["positional_embedding"][:2]
    names = {
        "self_attn.in_proj_": "attn.c_qkv.", "self_attn.out_proj.": "attn.c_proj.", "linear1.": "mlp.c_fc.",
        "linear2.": "mlp.c_proj.", "norm1.": "ln_1.", "norm2.": "ln_2.",
    }  # fmt: skip
    for i, layer in enumerate(layers):
        state = {
            theirs + kind: plain.w[f"transformer.resblocks.{i}.{ours}{kind}"]
            for theirs, ours in names.items()
            for kind in ("weight", "bias")
        }
        for kind in ("weight", "bias"):  # from each head its q, k, v to q, k, v, each with its heads
            rows = state[f"self_attn.in_proj_{kind}"]
            state[f"self_attn.in_proj_{kind}"] = torch.stack(rows.unflatten(0, (3, 3, 8)).unbind(1)).flatten(0, 2)
        layer.double().eval().load_state_dict(state)
        x = layer(x)
    x = F.layer_norm(x, (24,), plain.w["final_ln.weight"], plain.w["final_ln.bias"])
    torch.testing.assert_close(sequence, x)


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    recipe = recipe_of("adm-imagenet64", "network.classes=7")
    return recipe, published(recipe.build(empty=True))


def read(tiny, source):
    return read_into(tiny[0].build(empty=True), LAYOUTS["adm"], source, "preset 'tiny'")


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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("beside", [None, {"epoch": 3}, {"step": 9, "optimizer": {"state": {}, "param_groups": []}}])
def test_what_wrappers_put_around_names_is_taken_off(tiny, tmp_path, prefix, beside):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tiny[1].items()}
    torch.save(wrapped if beside is None else {"model": wrapped} | beside, tmp_path / "x.pt")
    state = read(tiny, tmp_path / "x.pt").network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny[1].items())


def test_a_prefix_that_only_some_names_have_is_named(tiny):
    wrapped = {f"module.{name}" if "bias" in name else name: tensor for name, tensor in tiny[1].items()}
    with pytest.raises(ValueError, match=r"unexpected: module\."):
        read(tiny, wrapped)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("half", [False, True])
def test_weights_that_are_not_finite_are_refused(tiny, tmp_path, value, half):
    tensors = {name: tensor.half() if half else tensor.clone() for name, tensor in tiny[1].items()}
    tensors["out.2.weight"].view(-1)[3] = value
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is not finite: out\.2\.weight"):
        read(tiny, tmp_path / "x.pt")


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
        load("adm-imagenet64", published(recipe.build(empty=True)))
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
    torch.save({"state_dict": tiny[1], "ema": tiny[1], "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"x\.pt holds several state dicts: state_dict, ema; give the one"):
        read(tiny, path)
    torch.save(tiny[1] | {"epoch": 3}, path)
    with pytest.raises(ValueError, match="holds more than tensors by name: 'epoch' is a int"):
        read(tiny, path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="holds a Tensor, not tensors by name"):
        read(tiny, path)


def test_a_released_size_loads_by_name():
    """The smallest of them, 42.57 million numbers that take no memory until they are read."""
    name = "adm-classifier-128"
    empty = load_recipe(name).build(empty=True).network.state_dict()
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
    system = recipe_of("adm-imagenet256").build(empty=True)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    assert math.log(system._floor) == pytest.approx(math.log(betas[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])))
    assert math.log(system._floor) == pytest.approx(-9.82, abs=0.005)
    torch.testing.assert_close(system.schedule.betas, linear_schedule().betas)
