"""The recorded pictures of lesson 07: complete, readable, and drawn as they say."""

import json
import re

import pytest
import torch

from minidiff.data.captions import judge
from minidiff.data.oracle import read
from minidiff.data.render import render
from minidiff.data.scenes import Object, Scene, Scenes
from minidiff.data.tokenizer import tokenizer
from minidiff.random import randn
from minidiff.recipes import load_recipe
from tools import guidance
from tools.lessons import ROOT

RESULT = json.loads((ROOT / "data/guidance.json").read_text())
CAPTIONS = ["a red ring above a blue square", "a small star", "a disc"]


def test_every_row_is_there():
    asked = [(model, guide, scale) for model, guide, scales in guidance.ROWS for scale in scales]
    assert sorted(map(str, asked)) == sorted(str((r["model"], r["guide"], r["scale"])) for r in RESULT["rows"])
    assert (RESULT["verdicts"], RESULT["steps"]) == (list(guidance.VERDICTS), guidance.STEPS)
    used = {name for row in guidance.ROWS for name in row[:2] if name} | {guidance.JUDGE, *guidance.READERS}
    assert set(RESULT["weights"]) == used
    assert set(RESULT["losses"]) == set(RESULT["training"]) == set(guidance.READERS)
    assert all(run["pictures"] > 0 and run["seconds"] > 0 for run in RESULT["training"].values())
    for losses in RESULT["losses"].values():
        assert all(len(errors) == guidance.UNSEEN and min(errors) > 0 for errors in losses.values())
        mean = {told: sum(errors) / len(errors) for told, errors in losses.items()}
        assert mean["the caption"] < mean["no caption"] < mean["another's caption"], "all of them read"


@pytest.mark.parametrize("split", ["seen", "heldout"])
def test_every_picture_was_judged(split):
    n = RESULT["captions"]
    for row in RESULT["rows"]:
        found = row[split]
        for verdicts, scores in zip(found["verdicts"], found["clip"], strict=True):
            assert len(verdicts) == len(scores) == n and all(-1 <= s <= 1 for s in scores)
            assert all(re.fullmatch("[01]{7}", bits) for bits in verdicts)
            columns = dict(
                zip(guidance.VERDICTS, torch.tensor([[int(b) for b in bits] for bits in verdicts]).T, strict=True)
            )
            for weaker, stronger in (
                ("shape", "binding"),
                ("color", "placed"),
                ("binding", "relation"),
                ("relation", "all"),
            ):
                assert bool((columns[weaker] >= columns[stronger]).all()), "what is bound is there"
        assert len(found["apart"]) == n and all(0 <= d <= 2 for d in found["apart"])


def test_what_is_found_in_a_real_picture():
    """A red ring above a blue square, asked for under several names."""
    ring, square = Object("ring", "red", "large", 0.5, 0.27, 0.18), Object("square", "blue", "large", 0.5, 0.74, 0.18)
    picture = render(Scenes.of([Scene((ring, square))]), 16)
    verdicts = {
        "a red ring above a blue square": "1111111",
        "a blue square under a red hoop": "1111111",
        "a red star above a blue heart": "1011000",
        "a blue ring above a red square": "1110000",
        "a red ring below a blue square": "1110100",
        "a pink ring above a blue square": "1100000",
        "a red ring": "0000000",
    }
    assert {said: guidance.found([said], picture)[0] for said in verdicts} == verdicts


@pytest.fixture
def system():
    torch.manual_seed(0)
    small = ["network.channels=8", "network.groups=4", "network.head_channels=8"]
    made = load_recipe("glide", small).build().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=(parameter.shape[1:].numel() or 1) ** -0.5)
    return made


class Warmer:
    """Stands in for a CLIP: likes red."""

    tokenizer = tokenizer("scenes")

    def critic(self, captions):
        return lambda x, level: 30 * x[:, 0].mean((1, 2))


def test_captions_with_another_relation_are_false():
    images, captions = guidance.unseen()
    for other in (guidance.TURNED, guidance.CROSSED):
        changed = [guidance.related(caption, other) for caption in captions]
        assert not judge(changed, read(images).scenes)["all"].any()
    assert guidance.related("a red ring to the left of a disc", guidance.TURNED) == "a red ring to the right of a disc"
    assert guidance.related("a red ring over a disc", guidance.TURNED) == "a red ring under a disc"
    assert guidance.related("a red ring over a disc", guidance.CROSSED) == "a red ring left of a disc"


def test_exchanged_captions_have_the_same_words_and_are_false():
    images, captions = guidance.unseen()
    others, scenes = [guidance.exchanged(caption) for caption in captions], read(images).scenes
    words = lambda caption: sorted(caption.replace("an ", "a ").split())
    assert len(captions) == guidance.UNSEEN and [*map(words, captions)] == [*map(words, others)]
    assert bool(judge(captions, scenes)["all"].all()) and not judge(others, scenes)["all"].any()
    assert guidance.exchanged("a red ring above an orange disc") == "a red disc above an orange ring"


def test_what_a_network_misses_is_its_loss(system, monkeypatch):
    """At the levels of the record, by the loss that it was trained with."""
    monkeypatch.setattr(guidance, "UNSEEN", 5)
    images, captions = guidance.unseen()
    expected = torch.zeros(5)
    for i, time in enumerate(guidance.TIMES):
        noise = [torch.Generator().manual_seed(i)]
        monkeypatch.setattr("minidiff.systems.diffusion.randn", lambda *a, noise=noise: randn(a[0], noise[0]))
        monkeypatch.setattr(system.part("caption"), "p_drop", 0.0)
        batch = {"image": images, "caption": system.part("caption").tokenizer(captions)}
        expected += system.loss(batch, None, system.schedule.level(torch.full((5,), time)))["loss"] / 4
    found = guidance.misses(system)
    torch.testing.assert_close(torch.tensor(found["the caption"]), expected.detach(), rtol=1e-4, atol=1e-5)
    assert len({tuple(errors) for errors in found.values()}) == 6


def test_a_picture_has_its_own_noise(system):
    for how in ((2.0, None), (3.0, Warmer())):
        together = guidance.drawn(system, CAPTIONS, 5, *how)
        alone = guidance.drawn(system, CAPTIONS[2:], 7, *how)
        torch.testing.assert_close(together[2:], alone, rtol=1e-3, atol=1e-3)


def test_a_clip_on_the_caption_does_nothing_at_scale_one(system):
    unguided = guidance.drawn(system, CAPTIONS, 0, 1.0, None)
    torch.testing.assert_close(guidance.drawn(system, CAPTIONS, 0, 1.0, Warmer()), unguided, rtol=1e-3, atol=1e-3)
    pushed = guidance.drawn(system, CAPTIONS, 0, 4.0, Warmer())
    assert bool((pushed[:, 0].mean((1, 2)) > unguided[:, 0].mean((1, 2))).all())
