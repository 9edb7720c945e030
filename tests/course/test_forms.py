"""The form of answers: what is let through reaches the cases as plain values, the rest is named in plain words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minidiff.course.comparing import apart, close, expect, normal, uniform
from minidiff.course.forms import (
    anything,
    call,
    integer,
    listed,
    number,
    prediction,
    several,
    taking,
    tensor,
    yes_or_no,
)
from minidiff.course.grading.wire import loopback
from minidiff.course.outcomes import Mistake
from minidiff.prediction import Prediction
from minidiff.schedule import NoiseLevel

LEVEL = NoiseLevel(0.6, 0.8, 3)
X = torch.zeros(2, 3, dtype=torch.float64)


def seen(form, value, **given):
    return form.see(loopback(value), given, "the answer")


@pytest.mark.parametrize(
    "value",
    [3, 3.0, torch.tensor(3), torch.tensor([3.0]), torch.tensor([[3]]), np.int64(3), np.float32(3), np.array(3)],
)
def test_numbers_of_many_kinds(value):
    assert (seen(number(), value), type(seen(number(), value))) == (3.0, float)
    assert (seen(integer(), value), type(seen(integer(), value))) == (3, int)


@pytest.mark.parametrize("value", [True, 1, np.bool_(True), torch.tensor(True), torch.tensor([1])])
def test_true_of_many_kinds(value):
    assert seen(yes_or_no(), value) is True


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        (number(), None, "the answer is None: it must be a number"),
        (number(), abs, "it is a function: call it"),
        (number(), torch.zeros(2), r"it is a tensor of shape \(2,\)"),
        (number(), True, "it is True"),
        (number(), "0.5", "it is of type str"),
        (number(), [0.5], "it is a list of 1"),
        (integer(), 0.5, "must be an integer; it is 0.5"),
        (integer(), float("nan"), "it is nan"),
        (yes_or_no(), 0.5, "must be True or False; it is 0.5"),
        (tensor("x"), X[0], r"has shape \(3,\); it must be \(2, 3\), the shape of x"),
        (tensor((2, 3)), X[0], r"has shape \(3,\); it must be \(2, 3\)$"),
        (tensor(lambda given: (len(given["x"]),)), X, r"it must be \(2,\)$"),
        (tensor("x"), X.long(), "dtype int64; it must hold floating-point numbers"),
        (tensor("x", "integer"), X, "dtype float64; it must hold integers"),
        (tensor("x", exact=True), X.float(), "dtype float32; it must be float64"),
        (tensor((3,), exact="x"), X[0].float(), "dtype float32; it must be float64"),
        (tensor("x"), {"x": X}, "must be a tensor; it is a dict of 1"),
        (tensor("x"), abs, "must be a tensor; it is a function"),
        (several(mean=number(), variance=number()), 0.5, r"must be 2 things, \(mean, variance\); it is 0.5"),
        (several(mean=number(), variance=number()), [1, 2, 3], "there are 3"),
        (several(mean=number(), variance=number()), (1, None), "variance is None: it must be a number"),
        (listed(integer(), 2), [1], "must have 2 entries; it has 1"),
        (listed(integer(), 2), [1, 1.5], "entry 1 of the answer must be an integer"),
        (prediction("x"), X, "must be a Prediction; it is a tensor"),
        (prediction("x"), Prediction(X[:1], LEVEL, X[:1], "eps"), r"for an x of shape \(1, 3\); x has \(2, 3\)"),
        (call(number(), lambda rng: {}), 0.5, "must be a function; it is 0.5"),
        (call(number(), lambda rng: {}), None, "the answer is None: it must be a function"),
        (anything(), None, "the answer is None"),
    ],
)
def test_what_has_not_the_form_is_named(form, value, message):
    with pytest.raises(AssertionError, match=message):
        seen(form, value, x=X)


def test_tensors_reach_the_cases_in_one_dtype():
    assert seen(tensor("x"), X.float(), x=X).dtype == torch.float64
    assert torch.equal(seen(tensor((2,)), [0.1, torch.tensor(0.25)]), torch.tensor([0.1, 0.25], dtype=torch.float64))
    assert seen(tensor((2,), "integer"), [1, 2]).dtype == torch.int64
    assert seen(tensor("x", exact=True), X.float(), x=X.float()).dtype == torch.float32
    labels = torch.tensor([1, 2])
    assert torch.equal(seen(tensor("labels"), labels.int(), labels=labels), labels)


def test_parts_and_lists():
    assert seen(several(a=number(), b=integer()), [torch.tensor(0.5), 2.0]) == (0.5, 2)
    assert seen(several(a=number(), b=number()), torch.tensor([1.0, 2.0])) == (1.0, 2.0)
    assert seen(listed(integer(), 3), torch.tensor([1, 2, 3])) == [1, 2, 3]


SCALED = call(call(tensor("x"), lambda rng: {"x": normal(rng, 2)}), lambda rng: {"f": lambda x: x, "s": 2.0})


def probed(form, answer):
    form.probe(seen(form, answer), torch.Generator())


def test_functions_are_held_to_the_form_at_every_call():
    function = seen(call(tensor("x"), lambda rng: {"x": X}), lambda x: x[0] if len(x) == 5 else x)
    assert function(X).shape == (2, 3)
    with pytest.raises(AssertionError, match="what your function returns has shape"):
        function(torch.zeros(5, 1))


def test_functions_of_functions():
    probed(SCALED, lambda f, s: lambda x: s * f(x))
    with pytest.raises(AssertionError, match="what your function returns must be a function"):
        probed(SCALED, lambda f, s: s)
    with pytest.raises(AssertionError, match="what the function that yours returns gives is None: is a `return`"):
        probed(SCALED, lambda f, s: lambda x: None)


def test_arguments_go_by_the_names_of_the_statement():
    form = call(number(), lambda rng: {"t": 1.0, "s": 2.0})
    probed(form, lambda t, s: t - s)
    with pytest.raises(AssertionError, match=r"it must take the arguments \(t, s\), also by these names: .*unexpected"):
        probed(form, lambda a, b: a - b)
    with pytest.raises(TypeError, match="unsupported"):
        probed(form, lambda t, s: t + "s")


def test_the_function_handed_over_takes_names_too():
    function = taking("x level", lambda a, b: (a, b))
    assert function(1, 2) == function(1, level=2) == function(level=2, x=1) == (1, 2)
    with pytest.raises(TypeError, match="missing a required argument: 'level'"):
        function(1, at=2)


def test_anything_still_names_a_forgotten_return():
    with pytest.raises(AssertionError, match="what your function returns is None: is a `return` missing"):
        seen(anything(), lambda x: None)(1)
    assert seen(anything(), lambda x: x + 1)(1) == 2


# -- comparing --------------------------------------------------------------------------------------------------------


def test_close_allows_what_float32_loses_and_no_more():
    x = uniform(torch.Generator().manual_seed(0), 0.01, 1.0, 100)
    assert close(x.float().sqrt(), x.sqrt()) and not close(x * 1.001, x)
    assert close(1e-7, 0.0, atol=1e-6) and not close(1e-7, 0.0)
    assert close((1.0, x), [1.0, x]) and not close((1.0,), (1.0, 2.0)) and not close(x[:, None], x)
    assert close(float("inf"), float("inf")) and not close(float("nan"), float("nan")) and not close(1.0, float("inf"))


def test_a_mistake_is_named_only_where_the_value_is_its_own():
    with pytest.raises(Mistake, match=r"^you doubled it$"):
        expect(2.0, 1.0, "it is one", {"you doubled it": 2.0, "you halved it": lambda: 0.5})
    with pytest.raises(AssertionError, match=r"^it is one$") as caught:
        expect(3.0, 1.0, "it is one", {"you doubled it": 2.0})
    assert not isinstance(caught.value, Mistake)
    expect(1.0, 1.0, "it is one", {"you did nothing": 1.0})


def test_all_mistakes_are_named_that_give_the_value():
    with pytest.raises(Mistake, match=r"^you doubled it; or you added one$"):
        expect(2.0, 1.0, "it is one", {"you doubled it": 2.0, "you added one": 2.0})


def test_a_mistake_of_a_part_or_of_nothing_but_nan():
    nan = torch.tensor([1.0, float("nan")])
    with pytest.raises(Mistake, match="0 over 0"):
        expect((nan, 1.0), (torch.ones(2), 1.0), "ones", {"0 over 0": (nan, 1.0)})
    with pytest.raises(AssertionError, match=r"^ones \(nan among what yours gives\)$"):
        expect(nan, torch.ones(2), "ones", {"zeros": torch.zeros(2)})


def test_numbers_are_shown_with_the_digits_that_tell_them_apart():
    assert apart(1.5151, 1.5152) == ("1.5151", "1.5152") and apart(0.5, 0.25) == ("0.5", "0.25")
    with pytest.raises(AssertionError, match=r"^it is 1\.515, not 1\.514$"):
        expect(1.514, 1.515, "it is {right}, not {got}")
