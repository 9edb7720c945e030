"""unCLIP's decoder (Ramesh et al. 2022, section 2.1): GLIDE's network, told a CLIP embedding of the image as well.

With embedding and caption dropped independently, and per sample, one network is h(z, c), h(z, null) and h(0, c):

- ``draw(decoder, n, caption=c)`` is h(0, c), a text-to-image model without a prior (section 5.1's first option);
- ``draw(decoder, n, embedding=z_t, caption=c)`` passes the text embedding off as one of an image (the second);
- ``draw(decoder, n, embedding=draw(prior, n, caption=c), caption=c)`` is unCLIP (the third).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import Count, Randomness, Share, checked, floats
from ..condition import Part, column
from ..data.degrade import DEGRADATIONS, blur
from ..data.sets import Rows
from ..models.unet import UNet
from ..random import randint
from .adm import UpsamplerOptions, channels, denoiser
from .diffusion import DenoiserOptions, Diffusion
from .embeddings import CaptionStates, ImageEmbedding
from .glide import caption
from .parts import LowRes
from .registry import system
from .unclip_prior import STATISTICS


@checked
@dataclass(frozen=True)
class DecoderOptions(DenoiserOptions):
    """Options of a decoder.

    Attributes:
        drop: Probability of the null in place of the caption.
        drop_embedding: Probability of the null in place of the image embedding, independently.
        clip: Name of the frozen CLIP whose embeddings these are.
    """

    drop: Share = 0.5
    drop_embedding: Share = 0.1
    clip: str = ""


@checked
class Decoder(Diffusion):
    """A denoiser that is told an image embedding, whose convention has statistics."""

    def prepare(self, rows: Rows) -> None:
        """Learn the convention's statistics from the embeddings of the training data."""
        super().prepare(rows)
        self.network.embedding.scale.learn(column(rows(STATISTICS), "embedding"))


@system("unclip_decoder", network=UNet, options=DecoderOptions)
def unclip_decoder(network, schedule, options, data) -> Decoder:
    """Told the CLIP embedding of an image, and a caption: by its own transformer, or by the frozen CLIP's states."""
    doors = network.config.embedding
    if doors is None:
        raise ValueError("a decoder is told an image embedding: network.embedding is missing")
    parts: list[Part] = [ImageEmbedding(doors.width, options.clip, options.drop_embedding)]
    if doors.text:
        parts.append(CaptionStates(doors.width, 77, options.clip, options.drop))
    elif network.config.text is not None:
        parts.append(caption(options, data, asked=False))
    return denoiser(network, schedule, parts, options, data, kind=Decoder)


@checked
@dataclass(frozen=True)
class CropOptions(UpsamplerOptions):
    """Options of an upsampler that is trained on crops.

    Attributes:
        crop: A crop's side is the image's over this; 1 for whole images.
        degrade: What the small image has gone through in training: "" for the area average alone, "blur" for a
            Gaussian blur after it, "bsr" for a chain of degradations in random order, see ``data.degrade``.
        mode: How the small image is enlarged: "bilinear" or "bicubic".
        blur_handed: Whether a picture that another system drew is blurred before it is enlarged. A network that saw
            none but blurred ones sharpens those that are sharp, and bends their outlines.
    """

    crop: int = 4
    degrade: str = ""
    mode: str = "bilinear"
    blur_handed: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.crop < 1 or self.degrade not in ("", *DEGRADATIONS):
            raise ValueError(
                f"crop >= 1 and degrade {', '.join(map(repr, ('', *DEGRADATIONS)))} are accepted, got {self.crop} and "
                f"{self.degrade!r}"
            )


@checked
class OnCrops(Diffusion):
    """A denoiser of convolutions alone: trained on crops, and asked about whole images (section 2.1).

    Attributes:
        crop: A crop's side is the image's over this.
    """

    crop = 1

    def subjects(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """x_0 of a training step, of any size that the network takes."""
        return column(batch, self.subject)

    def loss(self, batch: Mapping[str, Tensor], generator: Randomness = None, level=None) -> dict[str, Tensor]:
        """The loss on a random crop of each image; in evaluation mode on the whole one."""
        images = column(batch, "image")
        if self.training and self.crop > 1:
            batch = {**batch, "image": random_crops(images, images.shape[-1] // self.crop, generator)}
        return super().loss(batch, generator, level)


@checked
def random_crops(images: floats("B C H W"), size: Count, generator: Randomness = None) -> Tensor:
    """(B, C, H, W) -> (B, C, size, size), each from a place of its own."""
    n, _, height, width = images.shape
    tops = randint(height - size + 1, n, generator).tolist()
    lefts = randint(width - size + 1, n, generator).tolist()
    return torch.stack([x[:, i : i + size, j : j + size] for x, i, j in zip(images, tops, lefts, strict=True)])


@system("unclip_upsampler", network=UNet, options=CropOptions)
def unclip_upsampler(network, schedule, options, data) -> OnCrops:
    """Told a small image and nothing else; without attention, so that crops teach what whole images need."""
    if options.crop > 1 and not network.config.any_size:
        raise ValueError("crops are for a network without attention: network.attention [], middle_attention false")
    small = LowRes(
        options.factor,
        channels(network, options),
        options.mode,
        degrade=DEGRADATIONS.get(options.degrade),
        handing=blur if options.blur_handed else None,
    )
    made = denoiser(network, schedule, [small], options, data, kind=OnCrops)
    made.crop = options.crop
    return made
