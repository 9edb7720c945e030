"""The parts that several systems read: a label, a caption, a small version of the image, what of it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, NonNegative, Randomness, Share, checked, floats
from ..condition import Condition, Part, Question, Value, column
from ..data.degrade import Degradation
from ..data.masks import random_masks
from ..data.tokenizer import Tokenizer
from ..guidance import replace_known
from ..pictures import read_edit, read_picture
from ..pixels import quantize
from ..prediction import require_finite
from ..process import as_known, diffuse
from ..random import rand, randn
from ..schedule import NoiseLevel

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
CAPTION = (Question("caption", "text", "What to draw; several are drawn in turn.", many=True, first=True),)
MODES = ("bilinear", "bicubic", "antialiased")
TOLD = 1000  # a level in [0, 1] is told times this: the fastest sinusoid of a time embedding has the frequency one


@checked
class Label(Part):
    """A class, through the vector door. The null is -1, and the last row of the embedding (Ho and Salimans 2022).

    Args:
        n_classes: Number of classes.
        nullable: Whether the embedding has one more row, for the null.
        p_drop: Probability of the null in training.

    Raises:
        ValueError: for no classes, what is no probability, or dropout without a row for the null.
    """

    key, judge, vector = "label", "class", True
    questions = (
        Question(
            "label",
            "integer",
            "Class to draw, or its name on the card (default: all of them in turn).",
            many=True,
        ),
    )

    def __init__(self, n_classes: Count, nullable: bool = False, p_drop: Share = 0.0):
        if p_drop and not nullable:
            raise ValueError(f"labels are dropped with probability {p_drop}, but the embedding has no row for the null")
        self.n_classes, self.nullable, self.p_drop = n_classes, nullable, p_drop

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The label embedding has a row for each class, and one more where labels can be null."""
        rows, needed = network.config.classes, self.n_classes + self.nullable
        if rows != needed:
            raise ValueError(f"{self.n_classes} classes need network.classes = {needed}, got {rows}")

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """A label or (B,) labels, -1 for the null.

        Raises:
            ValueError: for a label that is out of range, or a null that the network was not built with.
        """
        lowest = -1 if self.nullable else 0
        accepted = f"labels must be (B,) integers from {lowest} to {self.n_classes - 1}, got {value!r}"
        try:
            labels = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(accepted) from None
        labels = labels[None] if labels.ndim == 0 else labels
        whole = labels.ndim == 1 and labels.dtype in INTEGERS
        if not whole or bool(((labels < lowest) | (labels >= self.n_classes)).any()):
            raise ValueError(accepted)
        return labels.long()

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> Tensor:
        """The labels of a batch.

        Raises:
            ValueError: on the CPU, for a label that is out of range; on other devices the check would make steps wait.
        """
        labels = column(batch, self.key)
        return self.read(labels, ()) if labels.device.type == "cpu" else labels

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """Rows of the label embedding."""
        return Condition(vector=network.label_emb(torch.where(value < 0, self.n_classes, value)))

    def nothing(self, network: nn.Module, n: Count) -> Tensor:
        """(n,) null labels."""
        return torch.full((n,), -1)

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The labels that were asked for, or all classes, in turn."""
        chosen = self.read(list(given.get("label") or range(self.n_classes)), shape)
        labels = chosen[torch.arange(n) % len(chosen)]
        return labels, labels


@checked
class Caption(Part):
    """A caption, by the network's own text transformer: one vector, a token for each word (Nichol et al. 2021, 4.1).

    What the transformer makes of the last place goes to the vector door, what it makes of all places to the tokens
    door. The null is the empty caption, tokens of -1.

    Args:
        tokenizer: Reads captions.
        p_drop: Probability of the empty caption in training; GLIDE's fine-tuning for guidance takes .2.
        asked: Whether a person has to name some on the command line.

    Raises:
        ValueError: for what is no probability.
    """

    key, judge, nullable, vector = "caption", "caption", True, True
    questions = CAPTION

    def __init__(self, tokenizer: Tokenizer, p_drop: Share = 0.0, asked: bool = True):
        self.tokenizer, self.p_drop, self.asked = tokenizer, p_drop, asked

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network reads text, and was made for this tokenizer."""
        text = network.config.text
        if text is None:
            raise ValueError("a text-to-image system needs a network with a text transformer; network.text is missing")
        if (text.vocabulary, text.context) != (self.tokenizer.size, self.tokenizer.context):
            raise ValueError(
                f"the network reads {text.context} of {text.vocabulary} tokens, but the tokenizer "
                f"{self.tokenizer.name!r} writes {self.tokenizer.context} of {self.tokenizer.size}"
            )

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """A caption, B captions, or their tokens (B, L).

        Raises:
            ValueError: for anything else, or what the tokenizer refuses.
        """
        if isinstance(value, Tensor):
            if value.ndim != 2 or value.dtype not in INTEGERS:
                raise ValueError(f"tokens must be (B, L) integers, got {tuple(value.shape)} of {value.dtype}")
            return value.long()
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"a caption, a list of captions or their tokens (B, L) are accepted, got {value!r}")
        return self.tokenizer(list(captions))

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """Tokens (B, L), -1 for none, through the vector door and the tokens door."""
        vector, sequence = network.text(value)
        return Condition(vector=vector, tokens=None if network.config.text.pooled else sequence)

    def nothing(self, network: nn.Module, n: Count) -> Tensor:
        """(n, L) tokens of empty captions."""
        return torch.full((n, self.tokenizer.context), -1)

    def answer(
        self, given: Mapping[str, object], n: int, shape: tuple[int, ...]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The captions in turn; nothing where there are none and none has to be."""
        if not self.asked and not given.get("caption"):
            return None, None
        captions, number = in_turn(given, n)
        return self.read(captions, shape)[number], number


@checked
def in_turn(given: Mapping[str, object], n: Count) -> tuple[list[str], Tensor]:
    """The captions that were asked for, and which of them each of n samples gets.

    Raises:
        ValueError: when there are none, or one is empty.
    """
    captions = list(given.get("caption") or ())
    if not captions or not all(captions):
        raise ValueError('this system draws captions: name some after it, such as "..."')
    return captions, torch.arange(n) % len(captions)


@checked
def level_of_sigma(sigma: floats("B")) -> NoiseLevel:
    """The variance-preserving levels of standard deviations (B,) in [0, 1), of which the network reads sigma."""
    return NoiseLevel((1 - sigma**2).sqrt(), sigma, TOLD * sigma)


@checked
class LowRes(Part):
    """A small version of the image, enlarged and put through the image door (Saharia et al. 2021; ADM; GLIDE).

    With ``augment`` there is noise in the small image, whose level the network reads (noise-conditioning
    augmentation, Ho et al. 2022): its value is (z, sigma), z = sqrt(1 - sigma^2) y + sigma eps. In training sigma is
    uniform in [0, augment], drawn per sample, and the noise is added to the image in [-1, 1] before it is enlarged.

    Args:
        factor: Height of x over that of the small image.
        channels: Channels of an image.
        mode: How the small image is enlarged, and in training reduced: "bilinear" (reduced by the area average),
            "bicubic" (reduced with antialiasing), or "antialiased" (both ways by Pillow's bicubic kernel).
        augment: Largest sigma of training; 0 for none.
        rounding: Of the eight bits in which a cascade hands the small image on.
        degrade: How training makes small images of large ones, in place of ``downsample``.
        handing: What an image that another system drew goes through before it is enlarged, at a factor of one.

    Raises:
        ValueError: for a factor below 1, another mode, or an augment outside [0, 1].
    """

    key, handed = "low_res", True
    questions = (
        Question("image", "file", "Small picture to enlarge; or draw one first, and name this as --upsample."),
    )

    def __init__(
        self,
        factor: Count,
        channels: Count = 3,
        mode: str = "bilinear",
        augment: Share = 0.0,
        rounding: Callable[[Tensor], Tensor] = torch.round,
        degrade: Degradation | None = None,
        handing: Degradation | None = None,
    ):
        if mode not in MODES:
            raise ValueError(f"mode {' or '.join(map(repr, MODES))} is accepted, got {mode!r}")
        self.factor, self.channels, self.mode, self.augment, self.rounding = factor, channels, mode, augment, rounding
        self.degrade, self.handing = degrade, handing
        self.vector = augment > 0

    def small_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the small image for x of a shape."""
        channels, height, width = shape
        return channels, height // self.factor, width // self.factor

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The size divides by the factor, and a level that is read has an embedding."""
        if shape[1] % self.factor:
            raise ValueError(f"size {shape[1]} must be divisible by the factor, got {self.factor}")
        if bool(self.augment) != network.config.image_level:
            need = "needs image_level=True" if self.augment else "has image_level=True, but augment is 0"
            raise ValueError(f"noise in the small image has to be told, and nothing else: the network {need}")

    def read(self, value, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Small images (B, C, H, W); with augmentation (images, sigma), sigma 0 when left out.

        Raises:
            ValueError: for another shape, what is not finite, or a sigma outside the range of training.
        """
        given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if not 1 <= len(given) <= 2:
            raise ValueError(f"a small image, or it and the sigma of its noise, are accepted; got {len(given)} values")
        image, *sigma = given
        expected = f"(B, {', '.join(map(str, self.small_shape(shape)))})"
        if not _is_image(image, self.small_shape(shape)):
            raise ValueError(f"this upsampler enlarges {expected}, got {_described(image)}")
        require_finite(image, "the small image")
        if not self.augment:
            if sigma:
                raise ValueError("this upsampler was trained without noise in the small image: it is told no level")
            return (image,)
        accepted = f"sigma is a standard deviation from 0 to {self.augment}, as in training, or (B,) of them"
        try:
            level = torch.as_tensor(sigma[0] if sigma else 0.0, dtype=image.dtype, device=image.device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{accepted}; got {sigma[0]!r}") from None
        level = level if level.ndim else level.expand(len(image))
        if level.ndim > 1 or not bool(((level >= 0) & (level <= self.augment)).all()):
            raise ValueError(f"{accepted}; got {sigma[0]}")
        return image, level

    def encode(self, network: nn.Module, value: tuple[Tensor, ...]) -> Condition:
        """The enlarged image through the image door, the level of its noise through the vector door."""
        image, *sigma = value
        condition = Condition(image=self.upsample(image))
        return replace(condition, vector=network.embed_image_level(TOLD * sigma[0])) if sigma else condition

    def upsample(self, image: floats("B C h w")) -> Tensor:
        """(B, C, h, w) -> (B, C, factor h, factor w)."""
        size = [self.factor * side for side in image.shape[2:]]
        antialias = self.mode == "antialiased"
        mode = "bicubic" if antialias else self.mode
        return F.interpolate(image, size, mode=mode, align_corners=False, antialias=antialias)

    def downsample(self, images: floats("B C H W")) -> Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor)."""
        size = [side // self.factor for side in images.shape[2:]]
        if self.mode == "bilinear":
            return F.interpolate(images, size, mode="area")
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, ...]:
        """The images reduced; with augmentation also noised, and how much."""
        images = column(batch, "image")
        small = self.downsample(images) if self.degrade is None else self.degrade(images, self.factor, generator)
        if not self.augment:
            return (small,)
        sigma = self.augment * rand((len(small),), generator, small.dtype, small.device)
        return self.noised(small, sigma, generator), sigma

    @staticmethod
    def noised(image: floats("B C h w"), sigma: floats("B"), generator: Randomness = None) -> Tensor:
        """z = sqrt(1 - sigma^2) y + sigma eps for y (B, C, H, W) and sigma (B,) (``eq-noised-condition``)."""
        eps = randn(image.shape, generator, image.dtype, image.device)
        return diffuse(image, level_of_sigma(sigma), eps)

    def quantize(self, image: floats()) -> Tensor:
        """The small image as a cascade hands it on: in eight bits."""
        return quantize(image, rounding=self.rounding)

    def takes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The small shape."""
        return self.small_shape(shape)

    def hand(self, drawn: Tensor, level: NonNegative, left: NonNegative, generator) -> Value:
        """The image in eight bits, with noise added up to the level; one with noise left in it as it is."""
        if left:
            return drawn, left
        image = self.quantize(drawn)
        image = image if self.handing is None else self.handing(image, 1, generator)
        if not level:
            return image
        sigma = torch.full((len(image),), level, dtype=image.dtype, device=image.device)
        return self.noised(image, sigma, generator), sigma

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Tensor, None]:
        """The small picture."""
        if not given.get("image"):
            raise ValueError("this system enlarges: name a small picture with --image, or it as --upsample of another")
        picture = read_picture(given["image"], self.small_shape(shape)[1])[None]
        return _in_channels(picture, shape[0]), None


@checked
class Known(Part):
    """The known part of the image and the mask that says which, through the image door (Nichol et al. 2021, 4.3).

    Its value is (image, mask): (B, C, H, W), whose values where the mask is 0 are not seen, and (B, 1, H, W), **1 where
    a pixel is known** and kept, 0 where it is to be painted. The network takes image * mask, then the mask.

    Args:
        channels: Channels of an image.
    """

    key = "known"
    questions = (
        Question("edit", "file", "Picture to edit: what is transparent in it is painted."),
        Question("mask", "file", "With --edit, says so instead: white is kept, black is painted."),
    )

    def __init__(self, channels: Count = 3):
        self.channels = channels + 1

    def read(self, value, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and masks (B, 1, H, W).

        Raises:
            ValueError: for another shape, a mask of anything but 0 and 1, or known values that are not finite.
        """
        sides = ", ".join(map(str, shape[1:]))
        accepted = f"this inpainter takes images (B, {shape[0]}, {sides}) and masks (B, 1, {sides})"
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"{accepted}, as a pair; got {type(value).__name__}")
        image, mask = value
        if not (_is_image(image, shape) and isinstance(mask, Tensor) and tuple(mask.shape[1:]) == (1, *shape[1:])):
            raise ValueError(f"{accepted}, got {_described(image)} and {_described(mask)}")
        known = as_known(mask)
        image = torch.where(known, image, 0.0)
        require_finite(image, "the known part of the image")
        return image, known.to(image.dtype)

    def encode(self, network: nn.Module, value: tuple[Tensor, Tensor]) -> Condition:
        """image * mask, then the mask."""
        image, mask = value
        return Condition(image=torch.cat([image * mask, mask], dim=1))

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, Tensor]:
        """The images behind random masks."""
        images = column(batch, "image")
        return images, random_masks(len(images), images.shape[-1], generator, images.device)

    def impose(self, denoiser, value: tuple[Tensor, Tensor]):
        """The known pixels come back as they are (``eq-impose``)."""
        return replace_known(denoiser, *value)

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], None]:
        """The picture that is edited, and what is kept of it."""
        if not given.get("edit"):
            raise ValueError("this system edits a picture: name it with --edit")
        picture, mask = read_edit(given["edit"], shape[1], given.get("mask"))
        return (_in_channels(picture, shape[0]), mask), None


def _is_image(value, shape: tuple[int, ...]) -> bool:
    """Whether a value is a tensor (B, *shape) of floating-point numbers."""
    floats = isinstance(value, Tensor) and value.is_floating_point() and value.device.type != "meta"
    return floats and tuple(value.shape[1:]) == tuple(shape)


def _described(value) -> str:
    """What a value is, in a message: a shape, and a type where it is no usual one."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else f" of {value.dtype}")


def _in_channels(picture: Tensor, channels: int) -> Tensor:
    """A picture (1, 3, H, W) for a system of colour or of grey."""
    return picture if channels == 3 else picture.mean(1, keepdim=True).expand(-1, channels, -1, -1)
