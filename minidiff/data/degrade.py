"""What a small image has gone through before it is enlarged: degradations that make an upsampler robust.

A degradation takes large images and the factor, and gives the small ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..arguments import Count, Positive, Randomness, checked, floats
from ..pixels import from_uint8, to_uint8
from ..random import rand, randn

Degradation = Callable[[Tensor, int, object], Tensor]
RESIZING = ("bilinear", "bicubic", "area")


@checked
def blurred(images: floats("B C H W"), sigma: Positive, size: Count = 3) -> Tensor:
    """Images (B, C, H, W) after a Gaussian blur with a kernel of size x size; edges are mirrored.

    Raises:
        ValueError: for an even size, or a sigma that is not positive.
    """
    if size % 2 == 0:
        raise ValueError(f"an odd size is accepted, got {size}")
    at = torch.arange(size, dtype=images.dtype, device=images.device) - size // 2
    line = torch.exp(-(at**2) / (2 * sigma**2))
    return _filtered(images, torch.outer(line, line)[None].expand(len(images), -1, -1))


def _filtered(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image (B, C, H, W) with a kernel (B, k, k) of its own, whose weights are made to sum to one."""
    n, planes, half = len(images), images.shape[1], kernels.shape[1] // 2
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    padded = F.pad(images, [half] * 4, mode="reflect").flatten(0, 1)[None]
    weights = kernels[:, None].repeat_interleave(planes, 0)
    return F.conv2d(padded, weights, groups=n * planes)[0].unflatten(0, (n, planes))


@checked
def blur(images: floats("B C H W"), factor: Count, generator: Randomness = None) -> Tensor:
    """The area average, then a Gaussian blur of 3x3 with sigma .6 (Ramesh et al. 2022, 2.1 and table 3)."""
    return blurred(F.avg_pool2d(images, factor), 0.6)


@checked
def jpeg(image: floats("C H W"), quality: Count) -> Tensor:
    """One image (1 or 3, H, W) in [-1, 1] after JPEG."""
    pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality)
    back = np.asarray(Image.open(buffer)).reshape(pixels.shape)
    return from_uint8(torch.from_numpy(back.copy()).permute(2, 0, 1)).to(image)


@checked
def bsr(images: floats("B C H W"), factor: Count, generator: Randomness = None) -> Tensor:
    """Blur, reduction, noise and JPEG in random order, each with random strength, image by image.

    After Zhang et al. 2021 (BSRGAN), in the reduced form that latent diffusion trains upsamplers with: two anisotropic
    blurs, one reduction by a random interpolation, Gaussian noise, JPEG in the end and perhaps once before. The ranges
    are ours: blurs of deviation .1 to 2.4 (in small pixels up to .6), noise up to .06 of the range, quality 60 to 95.
    No camera model.
    """
    n = len(images)
    order = rand((n, 4), generator, device="cpu").argsort(1).tolist()
    strength = rand((n, 10), generator, device="cpu").tolist()
    noise = randn(images.shape, generator, images.dtype, images.device)
    small = [images.shape[-2] // factor, images.shape[-1] // factor]
    out = []
    for image, steps, u, eps in zip(images, order, strength, noise, strict=True):
        for step in steps:
            if step in (0, 1):
                image = _filtered(image[None], _anisotropic(*u[3 * step : 3 * step + 3], image))[0]
            elif step == 2:
                kind = RESIZING[min(int(u[6] * len(RESIZING)), len(RESIZING) - 1)]
                options = {} if kind == "area" else {"align_corners": False, "antialias": True}
                image = F.interpolate(image[None], small, mode=kind, **options)[0]
            elif u[7] < 0.5:
                image = jpeg(image, 60 + int(70 * u[7]))
        image = image + 0.12 * u[8] * eps[:, : image.shape[1], : image.shape[2]]
        out.append(jpeg(image, 60 + int(36 * u[9])))
    return torch.stack(out)


def _anisotropic(first: float, second: float, turn: float, like: Tensor) -> Tensor:
    """(1, 7, 7) a Gaussian of deviations .1 to 2.4 along two axes, for an image of a size; less for small ones."""
    most = 2.4 if like.shape[-1] > 32 else 0.8
    stds = [0.1 + (most - 0.1) * u for u in (first, second)]
    c, s = math.cos(math.pi * turn), math.sin(math.pi * turn)
    at = torch.arange(7, dtype=like.dtype, device=like.device) - 3
    y, x = torch.meshgrid(at, at, indexing="ij")
    along, across = c * x + s * y, c * y - s * x
    return torch.exp(-((along / stds[0]) ** 2 + (across / stds[1]) ** 2) / 2)[None]


DEGRADATIONS: dict[str, Degradation] = {"blur": blur, "bsr": bsr}
