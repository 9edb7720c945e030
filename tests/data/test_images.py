from __future__ import annotations

import io
import logging
import os
import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from minidiff.data.images import ImageFolder, to_tensor, torchvision_set

DATA = os.environ.get("MINIDIFF_DATA")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(shade: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.full((*size[::-1], 3), shade, np.uint8)
    pixels[:, : size[0] // 2] //= 2
    return Image.fromarray(pixels)


FILES = {
    "cat/000.jpg": encoded(picture(200), "JPEG"),
    "cat/001.PNG": encoded(picture(100), "PNG"),
    "dog/000.jpg": encoded(picture(60), "JPEG"),
    "dog/001.jpg": encoded(picture(120), "JPEG")[:400],  # truncated
    "dog/002.png": b"this is no picture\n",
    "dog/003.png": b"",
    "dog/004.png": encoded(picture(240), "PNG"),
    "dog/005.png": encoded(picture(240, (64, 64)), "PNG")[:-30],
    "notes.txt": b"not an image, and not called one",
    ".hidden/000.png": encoded(picture(1), "PNG"),
    "__MACOSX/cat/000.jpg": b"a resource fork",
}
BROKEN = ["dog/001.jpg", "dog/002.png", "dog/003.png", "dog/005.png"]


@pytest.fixture(params=["folder", "zip"])
def source(request, tmp_path: Path) -> Path:
    if request.param == "zip":
        with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
        return tmp_path / "pictures.zip"
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_images_and_labels(source):
    data = ImageFolder(source, size=16)
    assert data.classes == ("cat", "dog") and len(data) == 8
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    image, label = data[1]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and label == 0
    assert (image[:, :, -1] - (100 / 127.5 - 1)).abs().max() < 1e-6
    assert (image[:, :, 0] - (50 / 127.5 - 1)).abs().max() < 1e-6
    assert ImageFolder(source)[1][0].shape == (3, 30, 40)
    assert ImageFolder(source, within="dog").classes == ("dog",)


def test_broken_files_are_skipped_counted_and_named(source, caplog):
    data = ImageFolder(source, size=8)
    assert data.broken == []
    with caplog.at_level(logging.WARNING):
        items = [data[i] for i in range(len(data))]
        again = [data[i] for i in range(len(data))]
    assert data.broken == BROKEN == data.check()
    for name in BROKEN:
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    assert "4 so far" in caplog.text
    good = data[6][0]  # the next good one stands in
    assert all(torch.equal(items[i][0], good) for i in (3, 4, 5)) and torch.equal(items[7][0], items[0][0])
    assert [label for _, label in items] == [0, 0, 1, 1, 1, 1, 1, 0]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(items, again, strict=True))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_and_report_what_is_broken(source, method):
    if method == "spawn" and source.is_dir():
        pytest.skip("slow to start, and only archives have a handle to share")
    data = ImageFolder(source, size=8)
    alone = torch.stack([image for image, _ in ImageFolder(source, size=8)])
    assert data[0][0].shape == (3, 8, 8)  # the parent's handle is open when the workers start
    loader = DataLoader(data, batch_size=2, num_workers=2 if method == "fork" else 1, multiprocessing_context=method)
    assert torch.equal(torch.cat([images for images, _ in loader]), alone)
    assert data.broken == BROKEN


def test_mirror_doubles_the_set(source):
    data, plain = ImageFolder(source, size=8, mirror=True), ImageFolder(source, size=8)
    assert len(data) == 2 * len(plain)
    assert torch.equal(data[8 + 2][0], plain[2][0].flip(2)) and not torch.equal(data[10][0], plain[2][0])
    assert data[10][1] == plain[2][1]


def test_it_ends_and_pickles(source):
    data = ImageFolder(source, size=8)
    with pytest.raises(IndexError):
        data[8]
    assert torch.equal(data[-8][0], data[0][0])
    assert torch.equal(pickle.loads(pickle.dumps(data))[0][0], data[0][0])


def test_a_folder_of_broken_images_says_so(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no")
    data = ImageFolder(tmp_path)
    assert data.classes == (".",)
    with pytest.raises(ValueError, match="none of the 3 images"):
        data[0]


def test_damaged_member_of_an_archive(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/0.png", "a/1.png"):
            archive.writestr(name, FILES["cat/001.PNG"])
    raw = bytearray(path.read_bytes())
    start = raw.index(b"IDAT") + 20
    raw[start] ^= 0xFF  # the checksum of the first member no longer fits
    path.write_bytes(raw)
    data = ImageFolder(path)
    assert torch.equal(data[0][0], data[1][0]) and data.broken == ["a/0.png"]


GREY16 = np.array([[0, 32896, 65535]], np.uint16)


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.fromarray(np.array([[0, 128, 255]], np.uint8)), [0, 128, 255]),
        (Image.fromarray(GREY16), [0, 128, 255]),
        (Image.fromarray(GREY16.astype(np.int32)), [0, 128, 255]),
        (Image.fromarray(np.array([[0, 128, 255]], np.uint8)).convert("P"), [0, 128, 255]),
        (
            Image.merge("LA", [Image.fromarray(np.array([c], np.uint8)) for c in ([0, 0, 100], [255, 0, 255])]),
            [0, 255, 100],
        ),
        (Image.fromarray(np.array([[False, True, True]])), [0, 255, 255]),
    ],
    ids=["L", "I;16", "I", "P", "LA", "1"],
)
def test_grey_modes(image, expected):
    tensor = to_tensor(Image.open(io.BytesIO(encoded(image, "TIFF" if image.mode == "I" else "PNG"))))
    assert tensor.shape == (3, 1, 3)
    for channel in tensor:
        torch.testing.assert_close((channel[0] + 1) * 127.5, torch.tensor(expected).float(), atol=1e-4, rtol=0)


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    for picture in (image, image.quantize()):
        tensor = (to_tensor(Image.open(io.BytesIO(encoded(picture, "PNG")))) + 1) / 2
        assert tensor[:, 0, 0].tolist() == [1, 1, 1] and tensor[:, 0, 1].tolist() == [1, 0, 0]


def test_camera_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = to_tensor(Image.open(io.BytesIO(encoded(picture(200), "JPEG", exif=exif))))
    assert upright.shape == (3, 40, 30)


def test_resizing_keeps_the_centre_square():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert to_tensor(Image.fromarray(wide), 10).min() == 1
    assert to_tensor(Image.fromarray(wide), 4).shape == (3, 4, 4)
    assert to_tensor(Image.new("RGB", (3, 3), "red"), 8).shape == (3, 8, 8)


def test_bad_paths_are_refused(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "none")
    for path, message in (
        ("missing", "does not exist"),
        ("text.zip", "neither a folder nor a zip"),
        ("empty", "no images in"),
        ("none.zip", "no images in"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolder(tmp_path / path)
    (tmp_path / "a.png").write_bytes(FILES["cat/001.PNG"])
    with pytest.raises(ValueError, match="below 'train'"):
        ImageFolder(tmp_path, within="train")
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="size"):
            ImageFolder(tmp_path, size=size)
    with pytest.raises(ValueError, match="floats"):
        to_tensor(Image.new("F", (2, 2)))


def test_torchvision_by_name(tmp_path):
    pytest.importorskip("torchvision")
    data = torchvision_set("fakedata", tmp_path, size=12)
    assert data[0][0].shape == (3, 12, 12) and -1 <= data[0][0].min() < data[0][0].max() <= 1
    pickle.dumps(data)  # for spawned workers
    for arguments, message in (
        (("CIFAR-10", tmp_path), "CIFAR10, CIFAR100"),
        (("CIFAR10", tmp_path), "CIFAR10 cannot be read from.*download=True"),
        (("CIFAR10", tmp_path, "heldout"), "train and test"),
        (("SVHN", tmp_path, "heldout"), "heldout"),
        (("CIFAR10", tmp_path, "train", 0), "size must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            torchvision_set(*arguments)


@pytest.mark.skipif(DATA is None, reason="MINIDIFF_DATA names the folder with cifar10.zip")
def test_cifar10():
    data = ImageFolder(Path(DATA or "") / "cifar10.zip", within="train")
    assert len(data) == 50_000 and data.labels.bincount().tolist() == [5000] * 10
    assert data.classes[0] == "airplane" and data.classes[-1] == "truck"
    start = time.perf_counter()
    images = torch.stack([data[i][0] for i in range(0, 50_000, 100)])
    assert time.perf_counter() - start < 2  # about a third of a second on an idle core
    assert images.shape == (500, 3, 32, 32) and data.broken == []
    mean, spread = images.mean((0, 2, 3)), images.std((0, 2, 3))
    published = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    assert (mean - (2 * published[0] - 1)).abs().max() < 0.06 and (spread - 2 * published[1]).abs().max() < 0.05
