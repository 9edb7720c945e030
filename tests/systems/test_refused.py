"""What cannot be a value, an option or a chain is refused in one line that says what is accepted."""

import copy
import re

import pytest
import torch

from minidiff import load
from minidiff.data.tokenizer import tokenizer
from minidiff.schedule import DATA
from minidiff.systems.diffusion import Diffusion
from minidiff.systems.draw import cascade, draw, drawn, truncated
from minidiff.systems.parts import Caption, Known, Label, LowRes

SHAPE = (3, 8, 8)
SMALL = torch.zeros(1, 3, 4, 4)
PICTURE, MASK = torch.zeros(1, *SHAPE), torch.ones(1, 1, 8, 8)
NAN = float("nan")


@pytest.mark.parametrize("value", ["3", ["x"], [None], {"a": 1}, True, torch.tensor(True), 2**63, NAN, [], [[1]], 1.5])
def test_what_is_no_label(value):
    with pytest.raises(ValueError, match=re.escape("labels must be (B,) integers from -1 to 9, got ")):
        Label(10, nullable=True).read(value, SHAPE)


@pytest.mark.parametrize("value", [3, NAN, ["a ring", 3], b"a ring", {"a ring"}, torch.zeros(1, 12), torch.zeros(12)])
def test_what_is_no_caption(value):
    with pytest.raises(ValueError, match=re.escape("(B, L)")):
        Caption(tokenizer("scenes")).read(value, SHAPE)


@pytest.mark.parametrize(
    "value", ["x", 3, (), (None, 0.1), SMALL.long(), (SMALL, "x"), (SMALL, None), (SMALL, torch.zeros(1, 1)),
              (SMALL, 0.1, 0.2), (SMALL, NAN), (SMALL, 0.6), (SMALL, -0.1)],
)  # fmt: skip
def test_what_is_no_small_image(value):
    with pytest.raises(ValueError, match=r"enlarges|sigma"):
        LowRes(2, augment=0.5).read(value, SHAPE)


@pytest.mark.parametrize(
    "value", ["xy", 3, PICTURE, (PICTURE,), (PICTURE, MASK, MASK), (PICTURE, "x"), (PICTURE.long(), MASK)]
)
def test_what_is_no_picture_with_a_mask(value):
    with pytest.raises(ValueError, match=re.escape("takes images (B, 3, 8, 8) and masks (B, 1, 8, 8)")):
        Known().read(value, SHAPE)


@pytest.mark.parametrize("p_drop", [NAN, -0.1, 1.1])
def test_dropout_is_a_probability(p_drop):
    for part in (lambda: Label(3, True, p_drop), lambda: Caption(tokenizer("scenes"), p_drop)):
        with pytest.raises(ValueError, match="p_drop must be a number from 0 to 1"):
            part()


@pytest.mark.parametrize("n_classes", [0, -1, 2.5, "3"])
def test_classes_are_counted(n_classes):
    with pytest.raises(ValueError, match="n_classes must be a whole number >= 1"):
        Label(n_classes)


@pytest.mark.parametrize("factor", [0, 1.5, "2", True])
def test_a_factor_is_a_whole_number(factor):
    with pytest.raises(ValueError, match="factor must be a whole number >= 1"):
        LowRes(factor)


@pytest.mark.parametrize("labels", [[0, 99], [0, -5], [0.0, 1.0]])
def test_training_refuses_labels_that_the_network_does_not_have(labels):
    for name in ("digits", "digits-classifier"):
        with pytest.raises(ValueError, match=r"labels? must be"):
            load(name).loss({"image": torch.zeros(2, 1, 8, 8), "label": torch.tensor(labels)})


def test_a_classifier_takes_one_label_or_as_many_as_images():
    classifier = load("digits-classifier")
    level = classifier.schedule.level(5)
    with pytest.raises(ValueError, match="3 labels for 2 images"):
        classifier.classifier([1, 2, 3])(torch.zeros(2, 1, 8, 8), level)
    for wrong in (2.5, "3", NAN, []):
        with pytest.raises(ValueError, match=r"labels? must be"):
            classifier.classifier(wrong)


def test_two_parts_of_one_key():
    system = load("digits")
    with pytest.raises(ValueError, match="a key of its own, got label, label"):
        Diffusion(system.network, system.schedule, [*system.parts, *system.parts], "v", "learned")


def test_labels_are_no_condition():
    system = load("digits")
    with pytest.raises(ValueError, match="condition"):
        system(torch.zeros(1, 1, 8, 8), system.schedule.level(5), torch.tensor([3]))


def test_a_system_in_double_precision_takes_values_in_single():
    """And draws what it draws in single precision, as far as that goes."""
    single, x_T = load("shapes8-16"), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    double = copy.deepcopy(single).double()
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for low_res in (image, (image, 0.2)):
        ours = draw(double, 1, levels=3, x_T=x_T.double(), label=1, low_res=low_res)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), draw(single, 1, levels=3, x_T=x_T, label=1, low_res=low_res))


@pytest.mark.parametrize("n", [0, -1, 1.5, NAN, "3", None, True])
def test_samples_are_counted(n):
    with pytest.raises(ValueError, match="n must be a whole number >= 1"):
        draw(load("digits"), n)


@pytest.mark.parametrize("temperature", [NAN, float("inf"), -1.0])
def test_a_temperature_is_finite_and_not_negative(temperature):
    with pytest.raises(ValueError, match="temperature must be a finite number >= 0"):
        draw(load("digits"), 1, temperature=temperature)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "two noise levels or more"),
        ((), "two noise levels or more"),
        ([1, 2], "each a NoiseLevel"),
        ([None], "each a NoiseLevel"),
        ([DATA], "two noise levels or more"),
    ],
)
def test_what_is_no_chain(levels, message):
    with pytest.raises(ValueError, match=message):
        draw(load("digits"), 1, levels=levels)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float64, "x_T must be of torch.float32 on cpu, as the system"),
        (torch.long, "x_T must be of torch.float32 on cpu, as the system"),
        (torch.complex64, "x_T must be a tensor of numbers"),
    ],
)
def test_a_start_of_another_precision(dtype, message):
    with pytest.raises(ValueError, match=message):
        draw(load("digits"), 1, x_T=torch.zeros(1, 1, 8, 8, dtype=dtype))


@pytest.mark.parametrize("sigma", [NAN, -0.1, 0.0])
def test_a_chain_is_not_cut_below_the_data(sigma):
    with pytest.raises(ValueError, match="sigma must be a finite number > 0"):
        truncated(load("digits").schedule, 5, sigma)


@pytest.mark.parametrize("level", [NAN, -0.1])
def test_a_truncated_cascade_refuses_the_same_levels(level):
    stages = [(load("shapes8"), {"levels": 2}), (load("shapes8-16"), {"levels": 2, "aug_level": level})]
    for truncate in (False, True):
        with pytest.raises(ValueError, match=r"(level|sigma) must be a finite number >=? 0, got"):
            cascade(stages, 1, truncate=truncate, label=1)


def test_the_base_of_a_cascade_enlarges_nothing():
    stages = [(load("shapes8"), {"levels": 2, "aug_level": 0.2}), (load("shapes8-16"), {"levels": 2})]
    with pytest.raises(ValueError, match="the base has none"):
        cascade(stages, 1, label=1)


@pytest.mark.parametrize(
    ("stages", "n", "message"),
    [
        ([], 1, "at least one picture of one stage"),
        (["digits"], 0, "n must be a whole number >= 1, got 0"),
        (["digits"], -1, "n must be a whole number >= 1, got -1"),
    ],
)
def test_at_least_one_picture_of_one_stage(stages, n, message):
    with pytest.raises(ValueError, match=message):
        list(drawn([(load(name), lambda mine: {}) for name in stages], {}, n))
