from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from minidiff.data.digits import digits


def test_all_are_the_digits_of_scikit_learn():
    images, labels = digits("all")
    raw = load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32 and labels.dtype == torch.long
    torch.testing.assert_close((images[:, 0] + 1) * 8, torch.tensor(raw.images, dtype=torch.float32))
    assert labels.tolist() == raw.target.tolist()


def test_splits_are_a_stratified_partition():
    train, heldout = digits("train"), digits("heldout")
    both = torch.cat([train[0], heldout[0]]).flatten(1).tolist()
    assert sorted(both) == sorted(digits("all")[0].flatten(1).tolist())
    share = heldout[1].bincount() / digits("all")[1].bincount()
    assert share.numel() == 10 and (share - 0.25).abs().max() < 0.005


def test_the_split_does_not_change_and_callers_cannot_change_it():
    images, _ = digits("heldout")
    before = images.clone()
    images.zero_()
    assert torch.equal(digits("heldout")[0], before)


@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "train, heldout, all"), ("", "train, heldout, all"), (None, "split must be a text, got None")],
)
def test_unknown_split_is_refused(split, message):
    with pytest.raises(ValueError, match=message):
        digits(split)
