"""The records of lesson 12: complete, readable, and of what they say."""

import json
import re

import torch

from minidiff.data.captions import parse
from minidiff.data.render import render
from minidiff.data.scenes import Object, Scene, Scenes
from minidiff.files import sha256
from minidiff.store import weights_path
from tools import imagen
from tools.lessons import ROOT

recorded = lambda name: json.loads((ROOT / f"data/{name}.json").read_text())
PROMPTS = recorded("drawbench")["prompts"]
SAID = "a red ring above a blue square"


def picture(size: int) -> torch.Tensor:
    """(1, 3, size, size) of what ``SAID`` says."""
    ring, square = Object("ring", "red", "large", 0.5, 0.27, 0.18), Object("square", "blue", "large", 0.5, 0.74, 0.18)
    return render(Scenes.of([Scene((ring, square))]), size)


def test_the_bench_has_eight_prompts_of_each_kind_and_the_grammar_says_what_they_mean():
    kinds = {p["category"] for p in PROMPTS}
    assert all(sum(p["category"] == kind for p in PROMPTS) == 8 for kind in kinds) and len(kinds) == 6
    assert len({p["prompt"] for p in PROMPTS}) == len(PROMPTS)
    for p in PROMPTS:
        assert str(parse(p["means"])) == p["means"]


def test_rare_words_are_no_words_of_training():
    seen = {word for caption in imagen.sheet() for word in caption.split()}
    for p in PROMPTS:
        if p["category"] == "rare words":
            assert set(p["prompt"].split()) - seen, f"{p['prompt']!r} has no new word"


def test_imagens_rows_are_complete_and_of_the_committed_weights():
    result = recorded("imagen")
    assert result["weights"] == sha256(weights_path(imagen.NETWORK))
    asked = {(rule, scale) for rule in imagen.RULES for scale in imagen.SCALES}
    assert {(row["rule"], row["scale"]) for row in result["rows"]} == asked and len(result["rows"]) == len(asked)
    n = imagen.CAPTIONS
    assert result["captions"] == imagen.sheet() and len(result["captions"]) == n
    for row in result["rows"]:
        assert all(len(row[key]) == n for key in ("verdicts", "clip", "outside", "saturated"))
        assert all(re.fullmatch("[01]{6}", digits) for digits in row["verdicts"])
        assert row["frechet"][1] < row["frechet"][0] < row["frechet"][2]
        if row["rule"] != "none":
            assert max(row["outside"]) == 0
    beside = result["beside"]
    assert beside["weights"] == sha256(weights_path(imagen.BESIDE)) and len(beside["verdicts"]) == n
    for copies in result["bench"].values():
        assert len(copies) == imagen.COPIES and all(len(copy) == len(PROMPTS) for copy in copies)


def test_what_is_found_in_a_real_picture():
    assert imagen.found([SAID, "a blue square below a red ring"], picture(16).repeat(2, 1, 1, 1)) == ["111111"] * 2
    assert imagen.found(["a blue ring above a red square"], picture(16)) == ["111000"]
