"""The order of training data: every image once an epoch, a few files at a time, any step, any share."""

import pytest
import torch

from minidiff.data.sets import Columns, Items
from minidiff.training.order import Order, batches


def test_order_visits_every_image_once_an_epoch():
    order = Order(n=10, batch=4, seed=0)
    seen = torch.cat([order[step] for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(Order(10, 4, 0)[3], order[3]), "any step can be asked for, in any order"
    assert not torch.equal(Order(10, 10, 1)[0], Order(10, 10, 0)[0]), "the seed matters"


def test_a_batch_may_be_larger_than_the_set():
    assert torch.bincount(Order(n=3, batch=9, seed=0)[1]).tolist() == [3, 3, 3]
    with pytest.raises(ValueError, match="n must be a whole number >= 1, got 0"):
        Order(0, 4, 0)


def test_order_of_shards_mixes_a_few_files_at_a_time():
    sizes = [3, 5, 2, 4, 6, 1]
    order = Order(n=21, batch=7, seed=1, shards=sizes, window=2)
    epoch = torch.cat([order[step] for step in range(3)])
    assert sorted(epoch.tolist()) == list(range(21))
    file_of = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))[epoch].tolist()
    runs = [set(file_of[: i + 1]) & set(file_of[i + 1 :]) for i in range(20)]
    assert max(map(len, runs)) == 2, "never more than a window of files is open"
    assert file_of != sorted(file_of) and any(len(run) == 2 for run in runs)


class OnDemand(torch.utils.data.Dataset):
    """Item i is the picture (i,) with the label 10 i."""

    def __len__(self):
        return 11

    def __getitem__(self, i):
        return torch.tensor([float(i)]), 10 * i


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_columns_by_name_wherever_they_come_from(workers):
    """In memory or read on demand, each process its share, from any step on."""
    memory = Columns(image=torch.arange(11.0)[:, None], label=10 * torch.arange(11))
    order, steps = Order(11, 4, seed=2), range(2, 5)
    for share in (slice(0, 4), slice(0, 2), slice(2, 4)):
        one = list(batches(memory, order, steps, share))
        other = list(batches(Items(OnDemand()), order, steps, share, workers))
        assert len(one) == len(other) == 3
        for step, mine, theirs in zip(steps, one, other, strict=True):
            assert mine.keys() == theirs.keys() == {"image", "label"}
            assert torch.equal(mine["label"], 10 * order[step][share])
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
