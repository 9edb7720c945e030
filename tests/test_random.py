"""Random numbers: explicit generators, and samples that do not depend on their batch."""

from __future__ import annotations

import pytest
import torch

from minidiff.random import rand, randint, randn, sample_generators

DRAWS = {"randn": randn, "rand": rand, "randint": lambda shape, generator: randint(1000, shape[0], generator)}


@pytest.fixture(params=list(DRAWS))
def draw(request):
    return DRAWS[request.param]


def test_one_generator_gives_torchs_own_stream():
    one, other = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(randn((4, 3), one), torch.randn(4, 3, generator=other))
    assert torch.equal(rand((4, 3), one), torch.rand(4, 3, generator=other))
    assert torch.equal(randint(17, 6, one), torch.randint(17, (6,), generator=other))


def test_a_sample_depends_on_its_own_generator_alone(draw):
    together = draw((5, 2), sample_generators(0, range(5)))
    for i in range(5):
        assert torch.equal(draw((1, 2), sample_generators(0, [i]))[0], together[i])


def test_streams_of_seeds_and_indices_differ():
    streams = [randn((1, 8), sample_generators(seed, [i])) for seed in range(10) for i in range(10)]
    correlation = torch.corrcoef(torch.cat(streams)) - torch.eye(100)
    assert correlation.abs().max() < 0.999
    assert len({tuple(stream.flatten().tolist()) for stream in streams}) == 100


def test_streams_of_neighbouring_indices_are_independent():
    x = randn((400, 500), sample_generators(1, range(400)), torch.float64)
    products = (x[1:] * x[:-1]).mean(1) * 500**0.5
    assert abs(products.mean()) < 4.5 / 399**0.5 and abs(products.var() - 1) < 4.5 * (2 / 399) ** 0.5


def test_streams_are_reproducible_and_continue():
    generators = sample_generators(4, range(3))
    first, second = randn((3, 2), generators), randn((3, 2), generators)
    assert not torch.equal(first, second)
    assert torch.equal(first, randn((3, 2), sample_generators(4, range(3))))


def test_without_a_generator_the_global_seed_counts():
    torch.manual_seed(1)
    first = randn((2, 3))
    torch.manual_seed(1)
    assert torch.equal(first, randn((2, 3)))


def test_types_and_ranges():
    assert randn((1, 2), dtype=torch.float64).dtype == torch.float64 and rand((1, 2)).dtype == torch.float32
    drawn = randint(3, 500, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.long and drawn.unique().tolist() == [0, 1, 2]
    uniform = rand((10_000,), torch.Generator().manual_seed(0))
    assert 0 <= uniform.min() < 0.01 and 0.99 < uniform.max() < 1


def test_wrong_number_of_generators(draw):
    with pytest.raises(ValueError, match="2 generators for a batch of 3: give one per sample"):
        draw((3, 2), sample_generators(0, range(2)))
