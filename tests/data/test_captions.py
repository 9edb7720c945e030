from __future__ import annotations

from collections import Counter
from itertools import product
from math import inf, log

import pytest
import torch
from helpers import seeded

from minidiff.data.captions import (
    COLOR_WORDS,
    MAX_WORDS,
    NOUNS,
    RELATION_WORDS,
    SIZE_WORDS,
    VOCABULARY,
    Caption,
    Phrase,
    attribute_index,
    attribute_prior,
    attributes_given_caption,
    caption_given_attributes,
    caption_probability,
    judge,
    parse,
    pmi,
    pmi_table,
    sample_captions,
)
from minidiff.data.scenes import COLORS, RELATIONS, SHAPES, SIZES, Object, Scene, Scenes, held_out, sample_scenes

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
WORDS = [{w for words in table.values() for w in words} for table in (SIZE_WORDS, COLOR_WORDS, NOUNS)]
ONE = [Caption((Phrase(*words),)) for words in product(*WORDS)]


def says(phrase: Phrase, o: Object) -> float:
    """p(phrase | object) read off the dictionaries."""
    tables = ((SIZE_WORDS, o.size, phrase.size), (COLOR_WORDS, o.color, phrase.color), (NOUNS, o.shape, phrase.noun))
    result = 1.0
    for table, value, word in tables:
        result *= table[value].get(word, 0.0)
    return result


def by_hand(caption: Caption, scene: Scene, relation: str | None = None) -> float:
    """p(caption | scene), one scene at a time."""
    if len(scene.objects) == 1:
        return says(caption.phrases[0], scene.objects[0])
    (a, b), (p, q), relation = scene.objects, caption.phrases, relation or scene.relation
    in_order = says(p, a) * says(q, b) * RELATION_WORDS[relation].get(caption.relation, 0.0)
    swapped = says(p, b) * says(q, a) * RELATION_WORDS[INVERSE[relation]].get(caption.relation, 0.0)
    return (in_order + swapped) / 2


@pytest.mark.parametrize("table", [SIZE_WORDS, COLOR_WORDS, NOUNS, RELATION_WORDS])
def test_words_of_every_value_are_a_distribution(table):
    assert all(sum(words.values()) == pytest.approx(1, abs=1e-15) for words in table.values())


def test_probabilities_of_all_one_object_captions_sum_to_one():
    for split in ("all", "seen", "heldout"):
        assert sum(caption_probability(c, split) for c in ONE) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("split", ["all", "seen", "heldout"])
@pytest.mark.parametrize(
    "text",
    [
        "a small red ring above a blue square",
        "a warm shape and an object",
        "a huge golden plus beside a cool disc",
        "an azure hoop under a tiny star",
    ],
)
def test_two_object_probability_is_that_of_a_brute_force_sum(text, split):
    """Sums p(x) p(c|x) over attributes with plain loops; only those that the first phrases allow are visited."""
    caption, total, scenes = parse(text), 0.0, 0
    objects = list(product(SHAPES, COLORS, SIZES))
    unseen = {(s, c) for i, s in enumerate(SHAPES) for j, c in enumerate(COLORS) if held_out(torch.tensor(i), j)}
    for a, b in product(objects, objects):
        kept = any(o[:2] in unseen for o in (a, b)) == (split == "heldout") or split == "all"
        if a[0] == b[0] or a[1] == b[1] or not kept:
            continue
        scenes += len(RELATIONS)
        scene = Scene((Object(*a, 0, 0, 0), Object(*b, 0, 0, 0)))
        total += sum(by_hand(caption, scene, r) for r in RELATIONS)
    assert caption_probability(text, split) == pytest.approx(total / scenes, rel=1e-12)


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("split", ["all", "seen", "heldout"])
def test_prior_counts_what_is_sampled(objects, split):
    prior = attribute_prior(objects, split)
    assert float(prior.sum()) == pytest.approx(1, abs=1e-12)
    scenes = sample_scenes(6000, seeded(), objects, split)
    assert (prior[attribute_index(scenes)] > 0).all()
    seen = torch.zeros_like(prior).index_put(attribute_index(scenes), torch.ones(6000).double(), accumulate=True) / 6000
    for dims in product(range(prior.ndim), range(prior.ndim)):  # every marginal and every pairwise table
        rest = [d for d in range(prior.ndim) if d not in dims]
        off = (seen.sum(rest) - prior.sum(rest)).abs() if rest else (seen - prior).abs()
        assert off.max() < 5 * (prior.sum(rest).max() / 6000) ** 0.5


def test_sampled_captions_are_as_frequent_as_counted():
    n = 20000
    for objects, least in ((1, 20), (2, 10)):
        scenes = sample_scenes(1, seeded(), objects).select(torch.zeros(n, dtype=torch.long))
        counts = Counter(sample_captions(scenes, seeded(1)))
        common = [(text, k) for text, k in counts.items() if k >= least]
        assert common
        for text, k in common:
            p = float(caption_given_attributes(text)[attribute_index(scenes.select(slice(0, 1)))])
            assert p == pytest.approx(by_hand(parse(text), scenes[0]), rel=1e-12)
            assert abs(k - n * p) < 5 * (n * p) ** 0.5


def test_caption_i_depends_on_its_scene_and_row_alone():
    scenes = sample_scenes(30, seeded(), 2)
    assert sample_captions(scenes, seeded(1))[:4] == sample_captions(scenes.select(slice(0, 4)), seeded(1))


def test_posterior_is_bayes_rule_and_pmi_its_log_ratio():
    for text in ("a tiny crimson ring", "a warm shape", "a star and a small heart"):
        objects = len(parse(text).phrases)
        prior, posterior = attribute_prior(objects), attributes_given_caption(text)
        assert float(posterior.sum()) == pytest.approx(1, abs=1e-12)
        possible = posterior > 0
        torch.testing.assert_close(pmi(text)[possible], (posterior / prior).log()[possible])
    assert pmi("a shape").abs().max() < 1e-12  # says nothing
    assert pmi("a crimson ring")[SHAPES.index("ring"), COLORS.index("red"), 0] == pytest.approx(log(64))
    assert pmi("a warm object").max() == pytest.approx(log(2))
    assert pmi("a red object")[0, COLORS.index("blue"), 0] == -inf
    above = attributes_given_caption("a shape over an object").sum((0, 1, 2, 3, 4, 5))
    torch.testing.assert_close(above, torch.tensor([0, 0, 0.5, 0.5]).double())  # either may be the first object


def test_pmi_table_is_pmi_of_each_pair():
    scenes = sample_scenes(6, seeded(), 2)
    captions = sample_captions(scenes, seeded(1))
    table = pmi_table(scenes, captions)
    for i, j in product(range(6), range(6)):
        p = by_hand(parse(captions[j]), scenes[i])
        expected = log(p / caption_probability(captions[j])) if p else -inf
        assert float(table[i, j]) == pytest.approx(expected, abs=1e-9)
    assert (table.diagonal() > 0).all()


def test_every_caption_parses_back_and_stays_in_the_vocabulary():
    texts = [str(c) for c in ONE] + sample_captions(sample_scenes(2000, seeded(), 2), seeded())
    for text in texts:
        assert str(parse(text)) == text and set(text.split()) <= set(VOCABULARY)
    assert max(len(t.split()) for t in texts) == MAX_WORDS
    assert {w for t in texts for w in t.split()} == set(VOCABULARY)
    assert str(parse("  A SMALL  orange Ring")) == "a small orange ring"
    assert str(parse("a orange ring")) == "an orange ring"


RED_RING = Object("ring", "red", "small", 0.5, 0.25, 0.13)
BLUE_SQUARE = Object("square", "blue", "large", 0.5, 0.75, 0.2)


@pytest.mark.parametrize(
    "text, right",
    [
        ("a small red ring above a blue square", {"count", "shape", "color", "binding", "relation", "all"}),
        ("a large cool box under a warm hoop", {"count", "shape", "color", "binding", "relation", "all"}),
        ("a large red ring above a blue square", {"count", "shape", "color", "binding", "relation"}),
        ("a red ring below a blue square", {"count", "shape", "color", "binding"}),
        ("a red ring beside a blue square", {"count", "shape", "color", "binding"}),
        ("a blue ring above a red square", {"count", "shape", "color"}),
        ("a red star above a blue square", {"count", "color"}),
        ("a pink ring above a blue square", {"count", "shape"}),
        ("a red ring", set()),
    ],
)
def test_judge(text, right):
    verdict = judge([text], Scenes.of([Scene((RED_RING, BLUE_SQUARE))]))
    assert {key for key, value in verdict.items() if value.item()} == right
    swapped = judge([text], Scenes.of([Scene((BLUE_SQUARE, RED_RING))]))
    assert all(torch.equal(verdict[k], swapped[k]) for k in verdict)


def test_judge_says_all_where_the_grammar_could_have_said_it():
    scenes = sample_scenes(200, seeded(), 2)
    captions = sample_captions(scenes, seeded(1))
    assert judge(captions, scenes)["all"].all()
    others = captions[1:] + captions[:1]
    could = torch.tensor([by_hand(parse(c), scenes[i]) > 0 for i, c in enumerate(others)])
    assert torch.equal(judge(others, scenes)["all"], could) and could.any() and not could.all()


def test_judge_skips_gaps():
    gap = Scenes.of([Scene((RED_RING, BLUE_SQUARE))])
    gap.shape[0, 1] = -1
    assert judge(["a red ring"], gap)["all"].item() and not judge(["a red ring and a box"], gap)["count"].item()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: parse(""), "'a' or 'an' expected"),
        (lambda: parse(3), "must be a text, got 3"),
        (lambda: parse("red ring"), "'a' or 'an'"),
        (lambda: parse("a mauve ring"), "noun.*mauve"),
        (lambda: parse("a red small ring"), "noun"),
        (lambda: parse("a red"), "noun"),
        (lambda: parse("a ring inside a box"), "inside"),
        (lambda: parse("a ring above"), "'a' or 'an'"),
        (lambda: parse("a ring above a box above a star"), "goes on"),
        (lambda: attribute_prior(3), "objects = 3"),
        (lambda: attribute_prior(1, "test"), "seen"),
        (lambda: attributes_given_caption("a red ring and a crimson box"), "fits no scene"),
        (lambda: pmi_table(sample_scenes(1, seeded()), ["a ring and a box"]), "names 2 objects"),
        (lambda: judge(["a ring"], sample_scenes(2, seeded())), "1 captions for 2"),
        (lambda: sample_captions(sample_scenes(1, seeded()), 3), "generator must be a Generator, got 3"),
        (lambda: sample_captions(Scenes.of([Scene(())]), seeded()), "lacks an object"),
        (
            lambda: sample_captions(sample_scenes(1, seeded(), 2), seeded(), 1.5),
            "reading must be a number from 0 to 1, got 1.5",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
