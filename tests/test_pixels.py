"""Numbers in [-1, 1] and what files hold, against numpy."""

import numpy as np
import pytest
import torch

from minidiff.pixels import from_uint8, quantize, to_uint8

VALUES = torch.linspace(-1.3, 1.3, 4001)
ROUNDINGS = {"nearest": (torch.round, np.rint), "down": (torch.floor, np.floor)}


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_to_eight_bits_as_numpy_rounds(rounding):
    ours, theirs = ROUNDINGS[rounding]
    expected = np.clip(theirs((VALUES.numpy() + 1) * np.float32(127.5)), 0, 255).astype(np.uint8)
    found = to_uint8(VALUES, ours)
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), expected)
    assert len(found.unique()) == 256 and found[0] == 0 and found[-1] == 255


def test_every_pixel_survives_the_way_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(2, 1, 8, 16)
    images = from_uint8(pixels)
    assert images.dtype == torch.float32 and images.shape == pixels.shape
    np.testing.assert_allclose(images.numpy(), pixels.numpy() / np.float32(127.5) - 1, rtol=0, atol=1e-7)
    assert images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_quantized_is_what_a_file_would_give_back(rounding):
    ours, _ = ROUNDINGS[rounding]
    torch.testing.assert_close(quantize(VALUES, rounding=ours), from_uint8(to_uint8(VALUES, ours)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bins", [2, 3, 17, 256])
def test_the_values_of_bins_are_equally_spaced_and_kept(bins):
    allowed = np.linspace(-1, 1, bins)
    found = quantize(VALUES.double(), bins)
    nearest = allowed[np.abs(VALUES.double().numpy()[:, None] - allowed).argmin(1)]
    tie = np.isclose(
        np.abs(found.numpy() - VALUES.numpy()), 1 / (bins - 1), atol=1e-9
    )  # halfway, either neighbour is nearest
    np.testing.assert_allclose(found.numpy()[~tie], nearest[~tie], atol=1e-12)
    assert len(found.unique()) == bins
    torch.testing.assert_close(quantize(torch.from_numpy(allowed), bins), torch.from_numpy(allowed))
