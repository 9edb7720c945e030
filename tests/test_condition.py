"""A condition is a sum of parts: how conditions add, and what a part does with its value, its null and its dropout."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from minidiff.condition import Condition, Part, Question, column, concatenate, each, length
from minidiff.random import sample_generators


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the sum --------------------------------------------------------------------------------------------------------


def everything(seed, tokens=2, channels=1, mask=True):
    """A condition that uses every door."""
    r = lambda *shape: torch.randn(shape, generator=seeded(seed))
    masks = torch.rand(3, tokens, generator=seeded(seed)) < 0.5 if mask else None
    return Condition(r(3, 4), r(3, tokens, 5), masks, r(3, channels, 2, 2))


def test_vectors_add_and_tokens_and_channels_stand_side_by_side():
    a, b = everything(0), everything(1, tokens=3, channels=2)
    both = a + b
    torch.testing.assert_close(both.vector, a.vector + b.vector)
    assert torch.equal(both.tokens[:, :2], a.tokens) and torch.equal(both.tokens[:, 2:], b.tokens)
    assert torch.equal(both.tokens_mask[:, :2], a.tokens_mask) and torch.equal(both.tokens_mask[:, 2:], b.tokens_mask)
    assert torch.equal(both.image[:, :1], a.image) and torch.equal(both.image[:, 1:], b.image)


def test_nothing_is_the_zero_of_the_sum_and_closed_doors_stay_closed():
    a = everything(0)
    assert a + Condition() == Condition() + a == a and Condition() + Condition() == Condition()
    vector, image = Condition(vector=a.vector), Condition(image=a.image)
    assert (vector + image).tokens is None and (vector + image).tokens_mask is None
    assert (vector + image).vector is a.vector and (vector + image).image is a.image


def test_the_order_of_a_sum_is_the_order_of_channels_and_not_of_its_brackets():
    a, b, c = (everything(i) for i in range(3))
    left, right = (a + b) + c, a + (b + c)
    assert torch.equal(left.image, right.image) and torch.equal(left.tokens, right.tokens)
    torch.testing.assert_close(left.vector, right.vector)
    assert not torch.equal((b + a).image, (a + b).image)


@pytest.mark.parametrize("first", [True, False])
def test_tokens_without_a_mask_all_count(first):
    a, b = everything(0, mask=first), everything(1, tokens=3, mask=not first)
    every = lambda n: torch.ones(3, n, dtype=torch.bool)
    mask = torch.cat([a.tokens_mask, every(3)] if first else [every(2), b.tokens_mask], 1)
    assert torch.equal((a + b).tokens_mask, mask)
    assert (everything(0, mask=False) + everything(1, mask=False)).tokens_mask is None
    alone = Condition(tokens=a.tokens, tokens_mask=a.tokens_mask) + Condition(vector=b.vector)
    assert alone.tokens_mask is a.tokens_mask


# --- batches of conditions ------------------------------------------------------------------------------------------


def test_concatenate_joins_open_doors_and_leaves_closed_ones():
    a = Condition(vector=torch.zeros(2, 3), image=torch.ones(2, 1, 4, 4))
    b = Condition(vector=torch.ones(1, 3), image=torch.zeros(1, 1, 4, 4))
    both = concatenate(a, b)
    assert both.vector.tolist() == [[0] * 3, [0] * 3, [1] * 3] and both.image.shape == (3, 1, 4, 4)
    assert both.tokens is None and both.tokens_mask is None
    assert concatenate(None, None) is None
    assert concatenate(torch.tensor([1]), torch.tensor([2, 3])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (None, torch.zeros(1)),
        (torch.zeros(1), None),
        (Condition(vector=torch.zeros(1, 2)), Condition(image=torch.zeros(1, 2))),
        (Condition(), torch.zeros(1)),
    ],
)
def test_conditions_that_do_not_match(first, second):
    """A door that only one half opens would otherwise be dropped, or leak into the other half."""
    with pytest.raises(ValueError, match="same form, got"):
        concatenate(first, second)


# --- values ---------------------------------------------------------------------------------------------------------


def test_each_tensor_of_a_value():
    a, b = torch.arange(3), torch.arange(6).view(3, 2)
    assert torch.equal(each(lambda t: t + 1, a), a + 1)
    one, other = each(lambda t: t * 2, (a, b))
    assert torch.equal(one, 2 * a) and torch.equal(other, 2 * b)
    one, other = each(torch.add, (a, b), (10 * a, b))
    assert torch.equal(one, 11 * a) and torch.equal(other, 2 * b)
    assert length(b) == length((a, b)) == 3
    with pytest.raises(ValueError):
        each(torch.add, (a, b), (a,))


def test_a_column_that_the_data_lack_is_named():
    assert column({"image": 1, "label": 2}, "label") == 2
    with pytest.raises(ValueError, match=re.escape("needs a column 'caption' of data; there are: image, label")):
        column({"label": 2, "image": 1}, "caption")


NO_NETWORK = nn.Module()


class Number(Part):
    """A number, whose null is -1; or a pair of them."""

    key = "number"

    def __init__(self, p_drop=0.0, nullable=True, pair=False):
        self.p_drop, self.nullable, self.pair = p_drop, nullable, pair

    def nothing(self, network, n):
        one = torch.full((n,), -1)
        return (one, torch.full((n, 2, 2), -2)) if self.pair else one


def test_a_null_for_each_sample_or_the_value_itself():
    value = torch.tensor([3, 4])
    assert Number().null(NO_NETWORK, value).tolist() == [-1, -1]
    assert Number(nullable=False).null(NO_NETWORK, value) is value
    a, b = Number(pair=True).null(NO_NETWORK, (value, torch.zeros(2, 2, 2)))
    assert a.tolist() == [-1, -1] and torch.equal(b, torch.full((2, 2, 2), -2))


@pytest.mark.parametrize("p", [0.15, 0.5])
def test_dropout_is_drawn_per_sample_at_its_rate(p):
    n = 20_000
    value = torch.arange(n)
    shown = Number(p).drop(NO_NETWORK, value, seeded())
    dropped = shown == -1
    assert torch.equal(shown[~dropped], value[~dropped]), "what is not dropped is shown as it is"
    assert abs(dropped.double().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)
    runs = (dropped[1:] != dropped[:-1]).double().mean().item()
    assert abs(runs - 2 * p * (1 - p)) < 0.02, "dropped values do not come in runs"


def test_dropout_of_none_and_of_all():
    value = torch.arange(50)
    before = seeded()
    assert Number(0.0).drop(NO_NETWORK, value, before) is value
    assert torch.equal(torch.rand(3, generator=before), torch.rand(3, generator=seeded())), "and takes no numbers"
    assert bool((Number(1.0).drop(NO_NETWORK, value, seeded()) == -1).all())


def test_a_value_of_several_tensors_is_dropped_whole():
    n = 400
    numbers, tables = torch.arange(n), torch.arange(4 * n).view(n, 2, 2)
    one, other = Number(0.3, pair=True).drop(NO_NETWORK, (numbers, tables), seeded())
    hidden = one == -1
    assert bool(((other == -2).flatten(1).all(1) == hidden).all()) and 0 < hidden.sum() < n
    assert torch.equal(other[~hidden], tables[~hidden])


def test_dropout_of_a_sample_depends_on_its_own_generator():
    value = torch.arange(12)
    many = Number(0.5).drop(NO_NETWORK, value, sample_generators(0, range(12)))
    for i in range(12):
        assert Number(0.5).drop(NO_NETWORK, value[i : i + 1], sample_generators(0, [i])) == many[i]
    assert 0 < (many == -1).sum() < 12


# --- what a part says of itself -------------------------------------------------------------------------------------


def test_a_part_reads_and_observes_by_its_key_unless_it_says_otherwise():
    part, value = Number(), torch.tensor([2])
    assert part.read(value, (1, 2, 2)) is value and part.observe({"number": value}) is value
    assert part.check(NO_NETWORK, (1, 2, 2)) is None and part.impose("denoiser", value) == "denoiser"
    with pytest.raises(ValueError, match="a column 'number'"):
        part.observe({"image": value})
    with pytest.raises(ValueError, match="a number cannot be asked for"):
        part.answer({}, 1, (1, 2, 2))


def test_a_question_is_a_value():
    question = Question("label", "integer", "Which.", many=True)
    assert question == Question("label", "integer", "Which.", True, False) and not question.first
    with pytest.raises(FrozenInstanceError):
        question.name = "other"
