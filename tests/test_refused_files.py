"""Recipes, checkpoints and options that cannot be: one line, which says where and what is accepted."""

import math
import re

import pytest
import torch

from minidiff import store
from minidiff.data.emoji import Emoji
from minidiff.guidance import classifier
from minidiff.metrics.drawing import Drawing
from minidiff.metrics.embedders import embedder
from minidiff.metrics.plans import Evaluation
from minidiff.recipes import load_recipe
from minidiff.systems.draw import draw
from minidiff.systems.sampling import Sampling

NAN = float("nan")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lr=nan", "training.lr must be a finite number > 0, got nan"),
        ("training.lr=-1", "training.lr must be a finite number > 0, got -1.0"),
        ("training.warmup=-5", "training.warmup must be a whole number >= 0, got -5"),
        ("training.seed=-1", "training.seed must be a whole number >= 0, got -1"),
        ("training.final_lr=nan", "training.final_lr must be a finite number >= 0, got nan"),
        ("training.weight_decay=-1", "training.weight_decay must be a finite number >= 0, got -1.0"),
        ("training.betas=[2, 3]", "training.betas are two numbers in [0, 1), got [2.0, 3.0]"),
        ("schedule={name: linear, betas: [.1, .2, .3]}", "betas are two numbers, the first and the last, got"),
        ("schedule={name: linear, betas: []}", "betas are two numbers, the first and the last, got []"),
        ("name=", "a recipe needs a name"),
        ("system=antigravity", "unknown system 'antigravity'"),
    ],
)
def test_numbers_and_names_of_a_recipe(override, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe("digits", [override])


def test_a_recipe_is_text_in_utf_8(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("name: gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is no text in UTF-8"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"{}"])
def test_what_is_no_card(tmp_path, text):
    (tmp_path / "card.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"card\.json is no card: "):
        store.find(str(tmp_path))


def test_weights_that_are_no_run(tmp_path):
    (tmp_path / "last.safetensors").write_bytes(store.weights_path("digits").read_bytes())
    with pytest.raises(ValueError, match="is no checkpoint of a run"):
        store.find(str(tmp_path))


def test_a_start_with_more_channels_is_named():
    with pytest.raises(ValueError, match=r"'digits' cannot start from .*shapes16.*: cannot widen 3 input channels"):
        store.begun(load_recipe("digits", ["start=shapes16"]))


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 8, 8), torch.zeros(1, 2, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8).byte()],
)
def test_what_an_embedder_sees(images):
    with pytest.raises(ValueError, match=re.escape("images are (B, 1 or 3, H, W), floats in [-1, 1]; got")):
        embedder("digits-classifier-clean").images(images)


def test_images_without_pixels():
    with pytest.raises(ValueError, match="sees images of 8x8, got 0x0"):
        embedder("digits-classifier-clean").images(torch.zeros(1, 1, 0, 0))


def test_a_hand_is_named_once():
    with pytest.raises(ValueError, match="each hand is named once, got noto, noto"):
        Emoji(hands=("noto", "noto"))
    with pytest.raises(ValueError, match="nobody called 'nota' drew emoji: did you mean 'noto'"):
        Emoji(hands="nota")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"systems": []}, "something has to draw"),
        ({"ways": [Sampling(), Sampling()]}, "1 systems take as many ways to sample, got 2"),
        ({"guide": "free"}, "the guide is one of cfg, classifier, clip, adm, got 'free'"),
    ],
)
def test_what_is_no_drawing(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Drawing(**{"systems": [store.load("digits")]} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": NAN}, "temperature must be a finite number >= 0, got nan"),
        ({"sampler": "euler"}, "the sampler is one of ddim, ancestral, heun, got 'euler'"),
        ({"guide": "free"}, "the guide is one of cfg, classifier, clip, adm, got 'free'"),
        ({"threshold": "soft"}, "the threshold is one of static, dynamic, none, got 'soft'"),
        ({"aug_level": 1.0}, "aug_level is a standard deviation in [0, 1), got 1.0"),
        ({"scale": NAN}, "scale must be a finite number or None, got nan"),
        (
            {"classifier_scales": {"250": math.inf}},
            "classifier_scales must be a mapping to a finite number, got {250: inf}",
        ),
        ({"steps": "many"}, "steps must be a number, '250', 'ddim25', 'fast27' or sections"),
        ({"classifier_scales": {"ddim": 1.0}}, "steps must be a number"),
    ],
)
def test_what_is_no_way_to_sample(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Sampling(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"captions": 1}, "captions must be at least 2, got 1"),
        ({"again": -1}, "again must be at least 0, got -1"),
        ({"draws": 0}, "draws must be at least 20, got 0"),
        ({"scales": ()}, "one guidance scale or more"),
        ({"scales": (1.0, NAN)}, "each finite, is accepted, got [1.0, nan]"),
    ],
)
def test_what_is_no_evaluation(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Evaluation(**options)


def test_a_classifier_guides_in_inference_mode():
    """The same samples as without."""
    guide = classifier(store.load("digits-classifier").classifier(3), 2.0)
    options = {"levels": 3, "guide": guide}
    expected = draw(store.load("digits"), 2, generator=torch.Generator().manual_seed(0), **options)
    with torch.inference_mode():
        found = draw(store.load("digits"), 2, generator=torch.Generator().manual_seed(0), **options)
    assert torch.equal(found, expected)
