"""The contrastive loss against open_clip's, its minimiser against counted pointwise mutual information."""

import math

import pytest
import torch

from minidiff.data.captions import attribute_prior, caption_given_attributes, caption_probability, pmi
from minidiff.pmi import (
    DIRECTIONS,
    info_nce,
    info_nce_limit,
    information_left,
    mutual_information,
    pointwise_mutual_information,
    residual,
)

OPEN = {"both": "constant", "image-to-text": "image", "text-to-image": "text"}  # what each loss leaves open


@pytest.fixture
def joint(generator):
    """Four pictures and five captions, unequal marginals."""
    return torch.rand(4, 5, generator=generator, dtype=torch.float64) ** 3 + 0.01


# --- mutual information ---------------------------------------------------------------------------------------------


def test_it_is_counted_cell_by_cell(joint):
    table, total = pointwise_mutual_information(joint), float(joint.sum())
    for i in range(4):
        for j in range(5):
            p_x, p_c = float(joint[i].sum()) / total, float(joint[:, j].sum()) / total
            assert float(table[i, j]) == pytest.approx(math.log(float(joint[i, j]) / total / (p_x * p_c)), abs=1e-12)
    torch.testing.assert_close(table, pointwise_mutual_information(joint / joint.sum()))


def test_pairs_that_never_occur_are_minus_infinity():
    table = pointwise_mutual_information(torch.tensor([[3, 0], [1, 2]]))
    assert table[0, 1] == -math.inf and table[1].isfinite().all() and table.dtype == torch.float64
    assert mutual_information(torch.eye(7)) == pytest.approx(math.log(7))
    assert mutual_information(torch.tensor([[1.0, 3], [2, 6]])) == pytest.approx(0, abs=1e-12)


def test_it_agrees_with_the_captions_of_scenes():
    """The grammar's own table is counted another way."""
    captions = ["a small red ring", "a huge warm object", "a disc"]
    prior = attribute_prior(1).flatten()
    said = torch.stack([prior * caption_given_attributes(c).flatten() for c in captions], 1)
    rest = (prior - said.sum(1)).clamp(min=0)  # every other caption
    table = pointwise_mutual_information(torch.cat([said, rest[:, None]], 1))
    for j, caption in enumerate(captions):
        torch.testing.assert_close(table[:, j], pmi(caption).flatten())
        assert float(said[:, j].sum()) == pytest.approx(caption_probability(caption))


@pytest.mark.parametrize("table", [torch.ones(3), torch.tensor([[1.0, -1], [1, 1]]), torch.tensor([[1.0, 0], [1, 0]])])
def test_what_is_no_joint(table):
    for function in (pointwise_mutual_information, mutual_information):
        with pytest.raises(ValueError, match="a joint table is"):
            function(table)


# --- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_open_clip(generator):
    loss = pytest.importorskip("open_clip").ClipLoss()
    z_i, z_t = (torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))
    torch.testing.assert_close(info_nce(7.0 * z_i @ z_t.T).mean(), loss(z_i, z_t, 7.0))


def test_each_direction_is_a_softmax_over_its_side(generator):
    f = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    by_image = torch.stack([f[i].exp().sum().log() - f[i, i] for i in range(5)])
    by_text = torch.stack([f[:, i].exp().sum().log() - f[i, i] for i in range(5)])
    torch.testing.assert_close(info_nce(f, "image-to-text"), by_image)
    torch.testing.assert_close(info_nce(f, "text-to-image"), by_text)
    torch.testing.assert_close(info_nce(f), (by_image + by_text) / 2)
    a = torch.randn(5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(info_nce(f + a[:, None], "image-to-text"), by_image)  # a(x) is not seen
    torch.testing.assert_close(info_nce(f + a, "text-to-image"), by_text)  # nor b(c) here
    assert (info_nce(f + a[:, None]) - info_nce(f)).abs().max() > 0.1


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_share_of_the_pairs_needs_its_rows_and_columns_alone(directions, generator):
    f = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(info_nce(f[:2], directions, f[:, :2]), info_nce(f, directions)[:2])
    for critic, columns in ((f[:2], f[:, :3]), (f[:2], None), (f[:, :2], f[:2])):
        with pytest.raises(ValueError, match=r"a critic of B pairs is \(B, B\), or \(B, N\) and \(N, B\) of N"):
            info_nce(critic, directions, columns)


def fitted(joint, directions, start):
    """The critic that LBFGS finds from a start, polished by Newton steps in what the loss does not leave open."""
    f = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([f], max_iter=300, line_search_fn="strong_wolfe")
    loss = lambda f: info_nce_limit(f, joint, directions)

    def closure():
        optimizer.zero_grad()
        value = loss(f)
        value.backward()
        return value

    optimizer.step(closure)
    f = f.detach()
    for _ in range(4):
        slope = torch.autograd.functional.jacobian(loss, f).flatten()
        curvature = torch.autograd.functional.hessian(loss, f).reshape(f.numel(), -1)
        f = f - (torch.linalg.pinv(curvature, rtol=1e-9) @ slope).reshape(f.shape)
    return f


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_minimiser_is_pointwise_mutual_information_up_to_what_is_open(directions, joint, generator):
    start = torch.randn(joint.shape, generator=generator, dtype=torch.float64)
    f = fitted(joint, directions, start)
    wrong = f - pointwise_mutual_information(joint)
    assert residual(wrong, OPEN[directions]).abs().max() < 1e-6
    assert float(info_nce_limit(f, joint, directions)) == pytest.approx(-mutual_information(joint), abs=1e-10)
    if directions != "both":  # one direction alone does not find the constant: what was open stays as it began
        assert residual(wrong, "constant").abs().max() > 0.1


def expected_loss(f, joint, directions, keep):
    """The exact mean of the loss over batches of two independent pairs, those that ``keep`` lets pass."""
    n, m = joint.shape
    p = (joint / joint.sum()).flatten()
    total, mass = 0.0, 0.0
    for k in range(n * m):
        for j in range(n * m):
            (x_k, c_k), (x_j, c_j) = divmod(k, m), divmod(j, m)
            if keep(c_k, c_j):
                batch = f[[x_k, x_j]][:, [c_k, c_j]]
                total, mass = total + p[k] * p[j] * info_nce(batch, directions).mean(), mass + p[k] * p[j]
    return total / mass


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_duplicate_captions_leave_the_minimiser_where_it_is(directions, joint, generator):
    """With independent draws the gradient vanishes at PMI (plus what is open).

    Without duplicates the other pictures are no longer draws from p(x), so from text to image it does not.
    """
    joint, f = joint[:3, :3], pointwise_mutual_information(joint[:3, :3])
    shift = torch.randn(3, generator=generator, dtype=torch.float64)
    f = f + {"both": 1.7, "image-to-text": shift[:, None], "text-to-image": shift}[directions]
    f.requires_grad_()
    every = torch.autograd.grad(expected_loss(f, joint, directions, lambda a, b: True), f)[0]
    assert every.abs().max() < 1e-12
    without = torch.autograd.grad(expected_loss(f, joint, directions, lambda a, b: a != b), f)[0]
    assert (without.abs().max() < 1e-12) if directions == "image-to-text" else (without.abs().max() > 1e-3)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_large_batches_tend_to_the_limit(directions, joint, generator):
    f = torch.randn(joint.shape, generator=generator, dtype=torch.float64)
    p = (joint / joint.sum()).flatten()
    batches, size = 40, 300
    k = torch.multinomial(p, batches * size, replacement=True, generator=generator).view(batches, size)
    x, c = k // joint.shape[1], k % joint.shape[1]
    losses = torch.stack([info_nce(f[x[i]][:, c[i]], directions).mean() - math.log(size) for i in range(batches)])
    half = 4 * float(losses.std()) / math.sqrt(batches)
    assert abs(float(losses.mean() - info_nce_limit(f, joint, directions))) < half + 2 / size
    assert half < 0.05


@pytest.mark.parametrize("f", [torch.zeros(3), torch.zeros(3, 4)])
def test_critics_of_another_shape(f, joint):
    with pytest.raises(ValueError, match=r"a critic of B pairs is \(B, B\)"):
        info_nce(f)
    with pytest.raises(ValueError, match="the critic has shape"):
        info_nce_limit(f, joint)


def test_directions_are_named(joint):
    for call in (lambda: info_nce(torch.eye(3), "texts"), lambda: info_nce_limit(joint, joint, "texts")):
        with pytest.raises(
            ValueError, match="directions must be one of both, image-to-text, text-to-image, got 'texts'"
        ):
            call()


# --- residuals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free", ["constant", "image", "text", "both"])
@pytest.mark.parametrize("weighted", [False, True])
def test_residuals_are_those_of_least_squares(free, weighted, generator):
    n, m = 4, 3
    table = torch.randn(n, m, generator=generator, dtype=torch.float64)
    rows, columns = (torch.rand(k, generator=generator).double() + 0.1 for k in (n, m))
    if not weighted:
        rows, columns = torch.ones(n).double(), torch.ones(m).double()
    row = torch.eye(n).double()[:, None].expand(n, m, n).reshape(n * m, n)
    column = torch.eye(m).double().expand(n, m, m).reshape(n * m, m)
    one = torch.ones(n * m, 1).double()
    design = {"constant": one, "image": row, "text": column, "both": torch.cat([row, column], 1)}[free]
    root = (rows[:, None] * columns).sqrt().reshape(-1, 1)
    best = torch.linalg.pinv(root * design) @ (root * table.reshape(-1, 1))
    expected = table - (design @ best).reshape(n, m)
    given = {"rows": rows, "columns": columns} if weighted else {}
    torch.testing.assert_close(residual(table, free, **given), expected)


def test_nothing_free_leaves_the_table(generator):
    table = torch.randn(2, 3, generator=generator)
    assert torch.equal(residual(table, "nothing"), table)


def test_bad_residuals():
    for table, options, message in (
        (torch.tensor([[0.0, -math.inf]]), {}, "finite"),
        (torch.zeros(3), {}, "finite"),
        (torch.zeros(2, 3), {"rows": torch.ones(3)}, r"rows must be \(2,\)"),
        (torch.zeros(2, 3), {"columns": torch.tensor([1.0, 0, 1])}, r"columns must be \(3,\) positive"),
        (torch.zeros(2, 3), {"free": "images"}, "free must be one of nothing, constant, image, text, both"),
    ):
        with pytest.raises(ValueError, match=message):
            residual(table, **options)


# --- what an encoder leaves to the caption --------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [[0, 0, 1, 2], [7, 7, 7, 7], [0, 1, 2, 3]])
def test_what_is_left_is_the_mean_divergence_within_a_code(joint, codes):
    codes, p = torch.tensor(codes), joint / joint.sum()
    expected = 0.0
    for i in range(4):
        alike = p[codes == codes[i]].sum(0)
        said, among = p[i] / p[i].sum(), alike / alike.sum()
        expected += float(p[i].sum() * (said * (said / among).log()).sum())
    assert information_left(joint, codes) == pytest.approx(expected, abs=1e-12)


def test_codes_are_one_a_picture(joint):
    for codes in (torch.zeros(3, dtype=torch.long), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"codes must be a tensor \(N\) of whole numbers"):
            information_left(joint, codes)
