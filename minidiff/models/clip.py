"""CLIP: a tower for images and one for texts. GLIDE's noised CLIP, whose image tower reads the time."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, Finite, Natural, Positive, checked
from .layers import Stage, attend, check_input

INITIAL_LOGIT_SCALE, LARGEST_LOGIT_SCALE = math.log(1 / 0.07), math.log(100)  # (Radford et al. 2021, section 2.5)


@checked
@dataclass(frozen=True)
class CLIPConfig:
    """Shape of a CLIP.

    Attributes:
        size: Image height and width in pixels.
        patch: Side of a patch in pixels.
        embedding: Width of what both towers end in.
        width: Width of the image tower.
        layers: Blocks of the image tower.
        heads: Attention heads of the image tower.
        vocabulary: Number of tokens, the start and the end of a text among them.
        context: Places of a text, start and end among them.
        text_width: Width of the text tower.
        text_layers: Blocks of the text tower.
        text_heads: Attention heads of the text tower.
        levels: Rows of the table of times, which takes the class token's place; 0 for towers of open_clip, which are
            without time.
        frame: The tokens that start and end a text; the last two of the vocabulary when left out.
        pixel_mean: What is subtracted from the channels, whose values go from 0 to 255 here.
        pixel_std: What they are then divided by.
    """

    size: Count
    patch: Count
    embedding: Count
    width: Count
    layers: Count
    heads: Count
    vocabulary: Count
    context: Count
    text_width: Count
    text_layers: Count
    text_heads: Count
    levels: Natural = 0
    frame: tuple[int, int] | None = None
    pixel_mean: tuple[Finite, ...] = (127.5, 127.5, 127.5)
    pixel_std: tuple[Positive, ...] = (127.5, 127.5, 127.5)

    def __post_init__(self):
        for what, whole, part in (
            ("size", self.size, self.patch),
            ("width", self.width, self.heads),
            ("text_width", self.text_width, self.text_heads),
        ):
            if part < 1 or whole % part:
                raise ValueError(f"{what} {whole} does not divide into parts of, or into, {part}")
        if not len(self.pixel_mean) == len(self.pixel_std) > 0:
            raise ValueError(f"pixel_mean and pixel_std have a number for each channel, got {self.in_channels} means")
        if self.context < 2 or not all(0 <= token < self.vocabulary for token in self.ends):
            raise ValueError(f"a context of {self.context} and {self.vocabulary} tokens leave no room for {self.ends}")

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return len(self.pixel_mean)

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.in_channels, self.size, self.size

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that start and end a text."""
        return (self.vocabulary - 2, self.vocabulary - 1) if self.frame is None else self.frame

    def pixels(self, x: Tensor) -> Tensor:
        """Images (B, C, size, size) in [-1, 1] as the image tower takes them.

        Raises:
            ValueError: for the wrong channels or size.
        """
        check_input(x, self.in_shape)
        return channelwise((x + 1) * 127.5, self.pixel_mean, self.pixel_std)


@checked
def channelwise(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std, channel by channel."""
    return torch.stack([(x[:, i] - m) / s for i, (m, s) in enumerate(zip(mean, std, strict=True))], 1)


@checked
def framed(tokens: Tensor, config: CLIPConfig) -> tuple[Tensor, Tensor]:
    """Texts as CLIP reads them: start, tokens, end, then zeros, which no place up to the end can see.

    Args:
        tokens: (B, L), -1 from where a text ends; longer texts are cut.
        config: What starts and ends a text, and how many places there are.

    Returns:
        (B, context) tokens and (B,) the place of the end.

    Raises:
        ValueError: for another shape, or a token that the vocabulary lacks.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(f"tokens must be (B, L) integers, got {tokens.dtype} of shape {tuple(tokens.shape)}")
    if tokens.device.type == "cpu" and bool(((tokens < -1) | (tokens >= config.vocabulary)).any()):
        raise ValueError(
            f"tokens must be from -1 (none) to {config.vocabulary - 1}, got {int(tokens.min())} to {int(tokens.max())}"
        )
    start, end = config.ends
    tokens = tokens[:, : config.context - 2]
    tokens = F.pad(tokens, (0, config.context - 2 - tokens.shape[1]), value=-1)
    place = (tokens >= 0).sum(1) + 1
    tokens = F.pad(F.pad(tokens.clamp(min=0), (1, 0), value=start), (0, 1))
    return tokens.scatter(1, place[:, None], end), place


class Towers(nn.Module):
    """What every CLIP network offers.

    Attributes:
        noise_aware: Whether the image tower reads the time.
        logit_scale: log 1/tau, the parameter.
    """

    noise_aware: bool
    logit_scale: Tensor

    def image(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], (B,) times -> (B, E), of any length."""
        raise NotImplementedError

    def text(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens -> (B, E), of any length."""
        raise NotImplementedError

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The critic scale * <z_i, z_t> of every pair; of images and empty texts when there are no tokens.

        (B, C, H, W), (B,), (B, L) -> (B, B).
        """
        if tokens is None:
            tokens = torch.full((len(x), 1), -1, device=x.device)
        return self.critic(*(F.normalize(z.float(), dim=1) for z in (self.image(x, time), self.text(tokens))))

    def critic(self, z_i: Tensor, z_t: Tensor) -> Tensor:
        """scale * <z_i, z_t> of every pair: (N, E) and (M, E) of length 1 -> (N, M)."""
        device = "cpu" if z_i.is_meta else z_i.device.type
        with torch.autocast(device, enabled=False):  # half precision is too coarse for what a softmax reads
            return self.scale * (z_i @ z_t.T)

    def compile(self, *args, **options) -> None:
        """Compile the towers, which are called one by one too; arguments are those of ``torch.compile``."""
        self.image, self.text = (torch.compile(tower, *args, **options) for tower in (self.image, self.text))

    def __getstate__(self) -> dict:
        """What is copied: not the compiled towers, which would go on computing with the weights of the original."""
        return {name: value for name, value in super().__getstate__().items() if name not in ("image", "text")}

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), a number; at most 100, so that training cannot run away."""
        return self.logit_scale.float().clamp(max=LARGEST_LOGIT_SCALE).exp().reshape(())


class _Attention(nn.Module):
    """Residual self-attention; keys have no bias, which the softmax could not see."""

    def __init__(self, width: int, heads: int, residuals: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.ln = nn.LayerNorm(width)
        self.f_q, self.f_v = _linear(width, width, width**-0.5), _linear(width, width, width**-0.5)
        self.f_k = _linear(width, width, width**-0.5, bias=False)
        self.f_c = _linear(width, width, width**-0.5 / residuals)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        h = self.ln(x)
        return x + self.f_c(attend(self.f_q(h), [(self.f_k(h), self.f_v(h))], self.heads, causal=self.causal))


class _Perceptron(nn.Module):
    def __init__(self, width: int, residuals: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.f_1 = _linear(width, 4 * width, (2 * width) ** -0.5)
        self.f_2 = _linear(4 * width, width, width**-0.5 / residuals)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        return x + self.f_2(F.gelu(self.f_1(self.ln(x))))


class _Output(nn.Module):
    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.f = _linear(width, embedding, (2 / (width + embedding)) ** 0.5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W) -> (B, E)."""
        return self.f(self.ln(x))


def _linear(inputs: int, outputs: int, std: float, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _table(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


class _TextInput(nn.Module):
    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.w_voc = _table(config.vocabulary, config.text_width, std=0.02)
        self.w_pos = _table(config.context, config.text_width, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, context) -> (B, context, W)."""
        return F.embedding(tokens, self.w_voc) + self.w_pos


class _ImageInput(nn.Module):
    """Patches after a token for the time."""

    def __init__(self, config: CLIPConfig):
        super().__init__()
        width, patch, std = config.width, config.patch, config.width**-0.5
        self.w_t = _table(config.levels, width, std=std)
        self.patch_proj = _table(width, config.in_channels, patch, patch, std=(2 / (width * patch**2)) ** 0.5)
        self.w_pos = _table(1 + (config.size // patch) ** 2, width, std=std)
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, size, size) normalised, (B,) rows of the table -> (B, 1 + patches, W)."""
        patches = F.conv2d(x, self.patch_proj, stride=self.patch_proj.shape[-1]).flatten(2).mT
        return self.ln(torch.cat([F.embedding(time, self.w_t)[:, None], patches], 1) + self.w_pos)


class _Tower(nn.Module):
    """Blocks by the names of the released checkpoints."""

    def __init__(self, entrance: nn.Module, width: int, layers: int, heads: int, embedding: int, causal: bool):
        super().__init__()
        parts, residuals = {"input": entrance}, 2 * layers
        for i in range(layers):
            attend, think = _Attention(width, heads, residuals, causal), _Perceptron(width, residuals)
            parts[f"block_{i}"] = Stage(OrderedDict(f_attn=attend, f_mlp=think))
        self.blocks = nn.ModuleDict(parts | {"output": _Output(width, embedding)})

    def forward(self, place: Tensor | int, *given: Tensor) -> Tensor:
        """What enters, read at one place of each sequence -> (B, E)."""
        *blocks, output = self.blocks.values()
        h = blocks[0](*given)
        for block in blocks[1:]:
            h = block(h, None)
        return output(h[torch.arange(len(h), device=h.device), place])


class NoisedCLIP(Towers):
    """GLIDE's noised CLIP: the image tower sees x_t, and a learned row for t where CLIP has its class token.

    Nichol et al. 2021, section 4.4; the towers, their names and their start values are those of the released code,
    whose tensors say ``w`` and ``b``, or ``g`` and ``b``, for weight and bias.

    Raises:
        ValueError: without levels, or in ``image`` and ``text`` for what does not fit the shape.
    """

    noise_aware = True

    def __init__(self, config: CLIPConfig):
        super().__init__()
        if config.levels < 1:
            raise ValueError(f"a noised CLIP needs a row for each level, got levels = {config.levels}")
        self.config = config
        shape = config.width, config.layers, config.heads, config.embedding
        self.image_tower = _Tower(_ImageInput(config), *shape, causal=False)
        shape = config.text_width, config.text_layers, config.text_heads, config.embedding
        self.text_tower = _Tower(_TextInput(config), *shape, causal=True)
        self.logit_scale = nn.Parameter(torch.full((1,), INITIAL_LOGIT_SCALE))

    def image(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], (B,) -> (B, E); clean images, time -1, are read as those of the first level."""
        return self.image_tower(0, self.config.pixels(x), time.long().clamp(0, self.config.levels - 1))

    def text(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 for none -> (B, E), read where the text ends."""
        tokens, place = framed(tokens, self.config)
        return self.text_tower(place, tokens)
