"""Pictures of a few pixels in files, for the tests of folders and shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def picture_file() -> Callable[..., bytes]:
    """``picture_file(shade, kind="PNG", size=8)``: a square picture as a file, its right half of the given shade."""

    def make(shade: int, kind: str = "PNG", size: int = 8) -> bytes:
        pixels = np.full((size, size, 3), shade, np.uint8)
        pixels[:, : size // 2] //= 2
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def folder(tmp_path: Path, picture_file) -> Path:
    """12 PNG, 11 JPEG and a BMP in the classes cat and dog; picture i has shade 10 * i. None is broken."""
    for i in range(24):
        kind = "BMP" if i == 23 else ("PNG", "JPEG")[i % 2]
        path = tmp_path / "pictures" / ("cat", "dog")[i // 12] / f"{i:03d}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_file(10 * i, kind))
    return tmp_path / "pictures"
