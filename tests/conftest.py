"""Worlds, levels and schedules that several test modules share. Everything is float64, on one thread."""

from __future__ import annotations

import pytest
import torch

from minidiff.exact import EmpiricalDenoiser, GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.schedule import (
    NoiseLevel,
    clipped_cosine_schedule,
    cosine_schedule,
    edm_schedule,
    linear_schedule,
    sqrt_linear_schedule,
    vp_schedule,
)

DISCRETE = {"linear": linear_schedule, "sqrt-linear": sqrt_linear_schedule, "cosine-1000": clipped_cosine_schedule}
CONTINUOUS = {"vp": vp_schedule, "cosine": cosine_schedule, "edm": edm_schedule}
LEVELS = {
    "linear-0": linear_schedule().level(0),
    "linear-400": linear_schedule().level(400),
    "clipped-cosine-999": clipped_cosine_schedule().level(999),
    "cosine-middle": cosine_schedule().level(0.5),
    "edm-small": edm_schedule().level(0.0),
    "edm-middle": edm_schedule().level(0.4),
    "edm-large": edm_schedule().level(1.0),
    "per-sample": linear_schedule().level(torch.tensor([3, 250, 600, 999])),
    "per-sample-edm": edm_schedule().level(torch.tensor([0.1, 0.35, 0.5, 0.9])),
}


LONG = ("test_grading", "test_training", "test_evaluate", "test_honest", "test_adding", "test_hostile", "test_crashes",
        "test_parallel", "test_text", "test_resume", "test_stages", "test_damaged_checkpoints", "test_sample",
        "test_networks", "test_places")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long stand first: of two workers, none waits for the other's last file."""
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Timings and rounding that do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(params=[*DISCRETE, *CONTINUOUS])
def schedule(request):
    """Each of the six schedules."""
    return (DISCRETE | CONTINUOUS)[request.param]()


@pytest.fixture(params=list(DISCRETE))
def discrete(request):
    """Each discrete schedule."""
    return DISCRETE[request.param]()


@pytest.fixture(params=list(CONTINUOUS))
def continuous(request):
    """Each continuous schedule."""
    return CONTINUOUS[request.param]()


@pytest.fixture(params=list(LEVELS))
def level(request) -> NoiseLevel:
    """Scalar and per-sample levels (for a batch of 4) from nearly clean to nearly pure noise, VP and VE."""
    return LEVELS[request.param]


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with a fixed seed."""
    return torch.Generator().manual_seed(20_240)


@pytest.fixture
def gaussian() -> GaussianDenoiser:
    """Three correlated dimensions."""
    root = torch.tensor([[0.9, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]], dtype=torch.float64)
    return GaussianDenoiser(torch.tensor([0.3, -0.5, 1.0]), root @ root.T)


@pytest.fixture
def mixture() -> GaussianMixtureDenoiser:
    """Five components in the plane, three classes (two of them of two components), unequal weights and variances."""
    means = torch.tensor([[1.0, 0.2], [-0.8, 0.9], [-0.4, -1.1], [0.6, 1.3], [1.2, -0.9]])
    return GaussianMixtureDenoiser(
        means, torch.tensor([0.04, 0.1, 0.02, 0.06, 0.3]), torch.tensor([1.0, 2, 3, 1, 2]), [0, 1, 2, 1, 0]
    )


@pytest.fixture
def line() -> GaussianMixtureDenoiser:
    """Three components on the real line, two classes; small enough for quadrature."""
    return GaussianMixtureDenoiser(
        torch.tensor([[-1.0], [0.3], [1.2]]), torch.tensor([0.05, 0.02, 0.1]), torch.tensor([2.0, 1, 1]), [0, 1, 0]
    )


@pytest.fixture
def pictures() -> EmpiricalDenoiser:
    """Twelve "images" of shape (2, 2, 1) in three classes, with a bandwidth."""
    images = torch.rand((12, 2, 2, 1), generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2 - 1
    return EmpiricalDenoiser(images, torch.arange(12) % 3, bandwidth=0.2)
