"""Pictures to files and back; pictures that are to be edited: what is known of them, and where."""

import numpy as np
import pytest
import torch
from PIL import Image

from minidiff.pictures import grid, read_edit, read_picture, save_grid
from minidiff.pixels import from_uint8

RED, GREEN = (224, 38, 47), (54, 168, 82)


@pytest.fixture
def pixels():
    """(32, 32, 4) uint8, red, and the left ten columns transparent, green below that."""
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[..., :3], picture[..., 3] = RED, 255
    picture[:, :10] = (*GREEN, 0)
    return picture


def saved(path, array):
    Image.fromarray(array).save(path)
    return path


# --- there and back -------------------------------------------------------------------------------------------------


def test_a_grid_is_filled_row_by_row_with_white_between():
    images = torch.arange(5.0).div(10).view(5, 1, 1, 1).expand(5, 3, 2, 4)
    picture = grid(images, columns=3, gap=1)
    assert picture.shape == (3, 5, 14)
    for i in range(5):
        y, x = 3 * (i // 3), 5 * (i % 3)
        assert torch.equal(picture[:, y : y + 2, x : x + 4], images[i])
    assert bool((picture[:, 2] == 1).all()) and bool((picture[:, :, 4] == 1).all())
    assert bool((picture[:, 3:, 10:] == 1).all()), "the place that is left over is white"
    assert grid(images).shape == (3, 5, 14), "about as many columns as rows when left out"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_from_its_file(channels, tmp_path):
    pixels = torch.randint(0, 256, (1, channels, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_grid(from_uint8(pixels), tmp_path / "x.png", least=8)
    assert torch.equal(read_picture(tmp_path / "x.png", 8), from_uint8(pixels[0]).expand(3, -1, -1))
    save_grid(from_uint8(pixels), tmp_path / "large.png", least=20)
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (16, 16), "enlarged by whole pixels"
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "large.png"))[::2, ::2].reshape(8, 8, -1)[..., 0], pixels[0, 0]
    )


def test_pictures_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(ValueError, match=r"a name that ends in \.png, not 'x\.jpg'"):
        save_grid(torch.zeros(1, 3, 2, 2), tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="pictures have 1 or 3 channels, got 4"):
        save_grid(torch.zeros(1, 4, 2, 2), tmp_path / "x.png")
    with pytest.raises(ValueError, match="no picture that can be read"):
        read_picture(tmp_path / "nowhere.png", 8)


# --- what is to be edited -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 16, 8])
def test_what_is_transparent_is_to_be_painted_and_tints_nothing(pixels, size, tmp_path):
    image, mask = read_edit(saved(tmp_path / "x.png", pixels), size)
    first = -(-10 * size // 32)  # the first column of which nothing is transparent
    expected = torch.zeros(1, 1, size, size)
    expected[..., first:] = 1
    assert image.shape == (1, 3, size, size) and torch.equal(mask, expected)
    red = torch.tensor(RED)[:, None, None] / 127.5 - 1
    assert (image[0, :, :, first:] - red).abs().max() < 1.5 / 127.5, "green would show at the border"


def test_a_mask_says_the_same(pixels, tmp_path):
    picture, mask = saved(tmp_path / "x.png", pixels[..., :3]), saved(tmp_path / "m.png", pixels[..., 3])
    by_mask, by_alpha = read_edit(picture, 16, mask), read_edit(saved(tmp_path / "y.png", pixels), 16)
    assert all(torch.equal(one, other) for one, other in zip(by_mask, by_alpha, strict=True))


@pytest.mark.parametrize(
    ("white", "dtype", "suffix"),
    [
        (1, np.uint8, "png"),
        (1, np.uint16, "png"),
        (255, np.uint16, "png"),
        (65535, np.uint16, "png"),
        (1, np.uint16, "tif"),
        (1, np.int32, "tif"),
    ],
)
def test_a_mask_in_ones_or_in_16_bits(white, dtype, suffix, pixels, tmp_path):
    picture = saved(tmp_path / "x.png", pixels[..., :3])
    mask = saved(tmp_path / f"m.{suffix}", (pixels[..., 3] == 255).astype(dtype) * dtype(white))
    expected = read_edit(picture, 16, saved(tmp_path / "m8.png", pixels[..., 3]))
    assert all(torch.equal(one, other) for one, other in zip(read_edit(picture, 16, mask), expected, strict=True))


def test_a_mask_that_keeps_nothing_is_black(pixels, tmp_path):
    """Not one of greys, nor one of dots smaller than a pixel, which would drop the picture without a word."""
    picture = saved(tmp_path / "x.png", pixels[..., :3])
    black = saved(tmp_path / "black.png", np.zeros((32, 32), np.uint8))
    assert not read_edit(picture, 16, black)[1].any()
    for name, values in (("grey", pixels[..., 3] // 2), ("dots", np.eye(32, dtype=np.uint8) * 255)):
        mask = saved(tmp_path / f"{name}.png", values)
        with pytest.raises(ValueError, match=f"keeps nothing of .*; the brightest of it is {values.max()}"):
            read_edit(picture, 16, mask)


def test_16_bits_of_grey_are_scaled_wherever_a_picture_is_read(tmp_path):
    grey = np.repeat(np.arange(32, dtype=np.uint8)[None] * 8, 32, 0)
    deep = saved(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    mask = saved(tmp_path / "m.png", np.tri(32, dtype=np.uint8) * 255)
    expected = torch.from_numpy(grey).float() / 127.5 - 1
    assert torch.allclose(read_edit(deep, 32, mask)[0], expected.expand(1, 3, 32, 32), atol=1e-6)
    assert torch.allclose(read_picture(deep, 32), expected.expand(3, 32, 32), atol=1e-6)


def test_a_wide_picture_is_cropped_with_its_mask(pixels, tmp_path):
    wide = np.concatenate([pixels, pixels[:, ::-1]], 1)  # transparent at both ends, which the square leaves out
    wide[4, 40, 3] = 0
    _, mask = read_edit(saved(tmp_path / "x.png", wide), 32)
    assert mask.sum() == 32 * 32 - 1 and mask[0, 0, 4, 24] == 0


def test_what_cannot_be_edited(pixels, tmp_path):
    opaque = saved(tmp_path / "x.png", pixels[..., :3])
    small, white = saved(tmp_path / "s.png", pixels[:8, :8, 3]), saved(tmp_path / "w.png", pixels[..., 3] | 255)
    (tmp_path / "text.png").write_text("no picture")
    for arguments, message in (
        ((opaque, 16), "left to paint; make a part of it transparent"),
        ((opaque, 16, white), "make a part of it black in the mask"),
        ((opaque, 16, small), "equal sizes are accepted"),
        ((tmp_path / "text.png", 16), "no picture that can be read"),
        ((opaque, 16, tmp_path / "text.png"), "no picture that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            read_edit(*arguments)


def test_a_mask_of_ones_keeps_everything(tmp_path):
    """In a table of zeros and ones too, where a one is nearly black."""
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for value in (1, 255):
        Image.new("L", (8, 8), value).save(tmp_path / "mask.png")
        with pytest.raises(ValueError, match=r"nothing of .* is left to paint"):
            read_edit(tmp_path / "picture.png", 8, tmp_path / "mask.png")
