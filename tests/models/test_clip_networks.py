"""CLIP networks: GLIDE's noised towers stated again from published tensors alone, and a small one of open_clip."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from minidiff.data.tokenizer import tokenizer
from minidiff.models.clip import CLIPConfig, NoisedCLIP, framed
from minidiff.models.open_clip import OpenCLIP, ReleasedCLIP
from minidiff.pretrained import LAYOUTS, load, preset, read_into
from minidiff.recipes import load_recipe
from minidiff.store import load as load_any
from minidiff.systems.clip import CLIP

TINY = [
    "network.size=8", "network.patch=4", "network.embedding=10", "network.width=24", "network.layers=2",
    "network.heads=3", "network.context=9", "network.text_width=16", "network.text_layers=3", "network.text_heads=2",
    "network.levels=20", "network.vocabulary=60", "network.frame=[52,53]",
]  # fmt: skip
MEANS, STDS = (122.77093945, 116.74601272, 104.09373519), (68.50053285, 66.63215831, 70.32316309)


def shape(**changes) -> CLIPConfig:
    """A small shape."""
    base = load_recipe("scenes-clip").network
    return dataclasses.replace(
        base, width=16, layers=1, heads=2, text_width=8, text_layers=2, text_heads=2, embedding=6, **changes
    )


# --- parameter counts -----------------------------------------------------------------------------------------------


def test_the_published_sizes():
    """71.68 M for the text tower, 86.44 M for the image tower; every tensor of the released layout is accounted for."""
    network = load_recipe("glide-clip").build(empty=True).network
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert f"{count(network.text_tower) / 1e6:.2f}" == "71.68"
    assert f"{count(network.image_tower) / 1e6:.2f}" == "86.44"
    assert count(network) == count(network.text_tower) + count(network.image_tower) + 1  # the temperature


def released_shapes(part, width, embedding, layers, first):
    """Names and shapes of one released file, written down from the description of its layout."""
    shapes = {f"blocks.input.{name}": size for name, size in first.items()}
    norm = lambda key: shapes.update({f"{key}.ln.g": (width,), f"{key}.ln.b": (width,)})

    def affine(key, inputs, outputs, bias=True):
        shapes[f"{key}.w"] = (outputs, inputs)
        if bias:
            shapes[f"{key}.b"] = (outputs,)

    for i in range(layers):
        norm(f"blocks.block_{i}.f_attn")
        for name in "qkvc":
            affine(f"blocks.block_{i}.f_attn.f_{name}", width, width, bias=name != "k")
        norm(f"blocks.block_{i}.f_mlp")
        affine(f"blocks.block_{i}.f_mlp.f_1", width, 4 * width)
        affine(f"blocks.block_{i}.f_mlp.f_2", 4 * width, width)
    norm("blocks.output")
    affine("blocks.output.f", width, embedding, bias=False)
    return {f"{part}.{k}": v for k, v in shapes.items()}


def test_names_and_shapes_are_those_of_the_released_files():
    image = {"w_t": (1000, 768), "patch_proj": (768, 3, 4, 4), "w_pos": (257, 768), "ln.g": (768,), "ln.b": (768,)}
    text = {"w_voc": (65536, 512), "w_pos": (77, 512)}
    expected = released_shapes("image", 768, 512, 12, image) | released_shapes("text", 512, 512, 12, text)
    state = load_recipe("glide-clip").build(empty=True).network.state_dict()
    named = {LAYOUTS["glide-clip"].published(k): tuple(v.shape) for k, v in state.items()}
    assert named == expected | {"logit_scale": (1,)}
    assert preset("glide-clip").file == "clip_image_enc.pt and clip_text_enc.pt"


# --- the towers, stated again ---------------------------------------------------------------------------------------


class Plain:
    """A tower of GLIDE's noised CLIP evaluated from the tensors of its file alone, float64."""

    def __init__(self, tensors, head_width):
        self.w = {k: v.double() for k, v in tensors.items()}
        self.head_width = head_width
        self.layers = 1 + max(int(k.split(".")[1].removeprefix("block_")) for k in tensors if "block_" in k)

    def norm(self, key, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.w[f"{key}.ln.g"] + self.w[f"{key}.ln.b"]

    def affine(self, key, x):
        out = torch.einsum("...i,oi->...o", x, self.w[f"{key}.w"])
        return out + self.w[f"{key}.b"] if f"{key}.b" in self.w else out

    def attended(self, key, x, causal):
        h = self.norm(key, x)
        out = torch.zeros_like(x)
        q, k, v = (self.affine(f"{key}.f_{name}", h) for name in "qkv")
        for first in range(0, x.shape[-1], self.head_width):
            head = slice(first, first + self.head_width)
            logits = torch.einsum("bic,bjc->bij", q[..., head], k[..., head]) / math.sqrt(self.head_width)
            if causal:
                later = torch.arange(x.shape[1])[None] > torch.arange(x.shape[1])[:, None]
                logits = logits - 1e10 * later
            weight = logits.exp() if not causal else (logits - logits.amax(-1, keepdim=True)).exp()
            out[..., head] = torch.einsum("bij,bjc->bic", weight / weight.sum(-1, keepdim=True), v[..., head])
        return x + self.affine(f"{key}.f_c", out)

    def run(self, x, place, causal):
        for i in range(self.layers):
            x = self.attended(f"blocks.block_{i}.f_attn", x, causal)
            h = self.affine(f"blocks.block_{i}.f_mlp.f_1", self.norm(f"blocks.block_{i}.f_mlp", x))
            h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
            x = x + self.affine(f"blocks.block_{i}.f_mlp.f_2", h)
        read = torch.stack([row[at] for row, at in zip(x, place, strict=True)])
        return self.affine("blocks.output.f", self.norm("blocks.output", read))

    def image(self, x, t):
        p = self.w["blocks.input.patch_proj"].shape[-1]
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (MEANS, STDS))
        x = ((x.double() + 1) * 127.5 - mean) / std
        rows = []
        for top in range(0, x.shape[2], p):
            for left in range(0, x.shape[3], p):
                patch = x[:, :, top : top + p, left : left + p]
                rows.append(torch.einsum("bcij,ocij->bo", patch, self.w["blocks.input.patch_proj"]))
        tokens = torch.stack([self.w["blocks.input.w_t"][t], *rows], 1) + self.w["blocks.input.w_pos"]
        return self.run(self.norm("blocks.input", tokens), [0] * len(x), causal=False)

    def text(self, texts, context, start, end):
        """Lists of tokens: start, as many as fit, end, zeros."""
        whole = [[start, *text[: context - 2], end] for text in texts]
        ids = torch.tensor([[*text, *[0] * (context - len(text))] for text in whole])
        x = self.w["blocks.input.w_voc"][ids] + self.w["blocks.input.w_pos"]
        return self.run(x, [len(text) - 1 for text in whole], causal=True)


def published(network, seed=0):
    """What the two files would hold, every tensor random, by part."""
    generator = torch.Generator().manual_seed(seed)
    files = {"image": {}, "text": {}}
    for name, value in network.state_dict().items():
        part, _, key = LAYOUTS["glide-clip"].published(name).partition(".")
        if part in files:
            files[part][key] = torch.randn(value.shape, generator=generator) * (value[0].numel() ** -0.5)
    return files


@pytest.fixture(scope="module")
def released():
    """A small noised CLIP with random tensors, and these as published."""
    recipe = load_recipe("glide-clip", TINY)
    files = published(recipe.build(empty=True).network)
    joined = {f"{part}.{k}": v for part, file in files.items() for k, v in file.items()}
    return read_into(recipe.build(empty=True), LAYOUTS["glide-clip"], joined, "tiny"), files


def test_the_image_tower_computes_the_released_function(released):
    system, files = released
    x, t = torch.rand(4, 3, 8, 8) * 2 - 1, torch.tensor([0, 3, 19, 3])
    expected = Plain(files["image"], 8).image(x, t)
    torch.testing.assert_close(system.network.image(x, t).double(), expected, rtol=1e-4, atol=1e-4)
    embedded = system.embed_images(x, system.schedule.level(t))
    torch.testing.assert_close(embedded.double(), F.normalize(expected, dim=1), rtol=1e-4, atol=1e-4)
    other = Plain(files["image"], 12).image(x, t)
    assert (other - expected).abs().max() > 0.01, "the number of heads matters to this test"


def test_the_text_tower_computes_the_released_function(released):
    system, files = released
    texts = [[], [3], [51, 0, 7], [1, 2, 3, 4, 5, 6, 7], list(range(12))]
    tokens = torch.full((5, 12), -1)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(text, dtype=torch.long)
    expected = Plain(files["text"], 8).text(texts, 9, 52, 53)
    torch.testing.assert_close(system.network.text(tokens).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(system.embed_texts(tokens).double(), F.normalize(expected, dim=1), rtol=1e-4, atol=1e-4)


def test_the_temperature_is_that_of_the_released_configuration(released):
    assert float(released[0].logit_scale) == pytest.approx(math.log(100))


def test_texts_are_framed_as_the_published_tokenizer_frames_them():
    """Start 49406, end 49407, zeros; as open_clip's own tokenizer does."""
    open_clip = pytest.importorskip("open_clip")
    config, texts = load_recipe("glide-clip").network, ["a red circle", "", "a corgi! wearing\na party hat " * 20]
    ours, place = framed(tokenizer("clip")(texts), config)
    assert torch.equal(ours, open_clip.SimpleTokenizer()(texts))
    assert torch.equal(ours.gather(1, place[:, None])[:, 0], torch.full((3,), 49407)) and place.tolist() == [4, 1, 76]


# --- reading released files -----------------------------------------------------------------------------------------


def test_a_preset_in_two_files(monkeypatch, tmp_path):
    from minidiff import pretrained

    tiny = load_recipe("glide-clip", TINY)
    monkeypatch.setattr(pretrained, "load_recipe", lambda name: tiny)
    files = published(tiny.build(empty=True).network)
    for part in files:
        torch.save(files[part], tmp_path / f"clip_{part}_enc.pt")
    x, t = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    paths = {part: tmp_path / f"clip_{part}_enc.pt" for part in files}
    expected = Plain(files["image"], 8).image(x, t)
    for source in (tmp_path, paths, files, paths | {"text": files["text"]}, "by name"):
        system = load_any(f"glide-clip={tmp_path}", can="critic") if source == "by name" else load("glide-clip", source)
        assert isinstance(system, CLIP) and system.noise_aware and not system.training
        torch.testing.assert_close(system.network.image(x, t).double(), expected, rtol=1e-4, atol=1e-4)
    for source, message in (
        (
            {"image": paths["image"]},
            "published in parts, image and text; a folder with clip_image_enc.pt and clip_text",
        ),
        (tmp_path / "elsewhere", "no checkpoint at .*clip_image_enc.pt"),
        (
            files | {"text": files["image"]},
            r"unexpected: text.blocks.input.ln.b, text.blocks.input.ln.g, text.blocks.input.patch_proj",
        ),
        (files | {"text": {}}, "the state dict of text holds"),
    ):
        with pytest.raises(ValueError, match=message):
            load("glide-clip", source)


# --- what a network takes -------------------------------------------------------------------------------------------


def test_framing():
    config = shape()
    tokens = torch.tensor([[5, 6, -1, -1], [-1, -1, -1, -1], [1, 2, 3, 4]])
    ids, place = framed(tokens, config)
    assert ids.shape == (3, 14) and place.tolist() == [3, 1, 5]
    assert ids[0].tolist() == [52, 5, 6, 53] + [0] * 10 and ids[1].tolist() == [52, 53] + [0] * 12
    cut, place = framed(torch.arange(20)[None], config)
    assert cut[0].tolist() == [52, *range(12), 53] and place.tolist() == [13]


@pytest.mark.parametrize("network", [lambda: OpenCLIP(shape()), lambda: NoisedCLIP(shape(levels=10))])
def test_what_follows_a_text_is_not_seen(network):
    """Longer padding changes nothing, other tokens do."""
    network = network().eval()
    tokens = torch.tensor([[5, 6, 7], [5, 7, 6]])
    z = network.text(tokens)
    torch.testing.assert_close(z, network.text(F.pad(tokens, (0, 9), value=-1)))
    assert (z[0] - z[1]).abs().max() > 1e-4


@pytest.mark.parametrize("network", [lambda: OpenCLIP(shape()), lambda: NoisedCLIP(shape(levels=10))])
def test_what_does_not_fit_is_refused(network):
    network = network()
    time = torch.zeros(2)
    with pytest.raises(ValueError, match=r"takes \(B, 3, 16, 16\), got \(2, 3, 8, 8\)"):
        network.image(torch.zeros(2, 3, 8, 8), time)
    with pytest.raises(ValueError, match=r"tokens must be from -1 \(none\) to 53, got 0 to 54"):
        network.text(torch.tensor([[0, 54]]))
    for tokens in (torch.zeros(3, dtype=torch.long), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"tokens must be \(B, L\) integers"):
            network.text(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 5}, "size 16 .* 5"),
        ({"heads": 5}, "width 96 .* 5"),
        ({"text_heads": 3}, "text_width 64 .* 3"),
        ({"frame": (0, 54)}, "no room for"),
        ({"context": 1}, "no room for"),
    ],
)
def test_shapes_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(load_recipe("scenes-clip").network, **changes)


def test_a_noised_clip_needs_levels():
    with pytest.raises(ValueError, match="needs a row for each level"):
        NoisedCLIP(shape())


def test_the_time_takes_the_place_of_the_class_token():
    """Another level, another embedding; clean images (time -1) are read as those of the first level."""
    network = NoisedCLIP(shape(levels=10))
    x = torch.rand(1, 3, 16, 16).expand(3, -1, -1, -1)
    z = network.image(x, torch.tensor([-1, 0, 9]))
    assert torch.equal(z[0], z[1]) and (z[1] - z[2]).abs().max() > 1e-3


def test_a_small_open_clip_is_open_clips_own_model():
    """The same numbers as its class with its own framing of the same words."""
    network = OpenCLIP(shape()).eval()
    x, words = torch.rand(2, 3, 16, 16) * 2 - 1, tokenizer("scenes")(["a red circle", "a small blue ring"])
    i, t, scale = network.model(x, torch.tensor([[52, *row[row >= 0].tolist(), 53] + [0] * (12 - int((row >= 0).sum()))
                                                 for row in words]))  # fmt: skip
    torch.testing.assert_close(network(x, torch.zeros(2), words), scale * i @ t.T)
    torch.testing.assert_close(network.scale, scale[0])
    assert not network.noise_aware


def test_the_temperature_cannot_run_away():
    for network in (OpenCLIP(shape()), NoisedCLIP(shape(levels=10))):
        assert network.scale.item() == pytest.approx(1 / 0.07)
        with torch.no_grad():
            network.logit_scale.fill_(50.0)
        assert network.scale.item() == pytest.approx(100)


def test_released_models_take_any_size():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(12, vision, text).eval()
    model.visual.image_mean, model.visual.image_std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    network, x = ReleasedCLIP(model), torch.rand(2, 3, 8, 8) * 2 - 1
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(network.image(x), model.encode_image(((x + 1) / 2 - mean) / std))
    even = torch.full((1, 3, 20, 20), 0.3)
    torch.testing.assert_close(network.image(even), network.image(even[..., :8, :8]))
    large = torch.rand(1, 3, 20, 20, requires_grad=True)
    network.image(large).sum().backward()
    assert large.grad.abs().min() > 0 and network.scale.item() == pytest.approx(1 / 0.07)
