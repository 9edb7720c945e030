"""The parts that a frozen CLIP makes: the embedding of an image, and texts as it and the network itself read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import Count, NonNegative, Randomness, Share, checked
from ..condition import Condition, Part, Question, Value, column
from ..data.tokenizer import Tokenizer
from ..pictures import read_picture
from .parts import CAPTION, Caption, in_turn


@checked
class ImageEmbedding(Part):
    """z_i, the frozen CLIP's embedding of an image, by the doors of ``models.embedding`` (Ramesh et al. 2022, 2.1).

    Its value is z_i as the CLIP gives it, whatever convention the network has inside. The null is the vector of zeros.

    Args:
        width: E.
        clip: Name of the CLIP.
        p_drop: Probability of the null in training; .1 in the paper.

    Raises:
        ValueError: for what is no probability.
    """

    key, nullable, handed, vector = "embedding", True, True, True
    questions = (Question("like", "file", "Picture whose embedding is drawn: variations of it."),)

    def __init__(self, width: Count, clip: str = "", p_drop: Share = 0.0):
        self.width, self.frozen, self.p_drop = width, clip, p_drop

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network has doors for an embedding of that width."""
        doors = network.config.embedding
        if doors is None or doors.width != self.width:
            has = "none" if doors is None else f"some for {doors.width}"
            raise ValueError(
                f"an image embedding of width {self.width} needs doors of that width; the network has {has}"
            )

    def read(self, value, shape: tuple[int, ...]) -> Tensor:
        """Embeddings (B, E), or pictures (B, 3, H, W) in [-1, 1] that the frozen CLIP embeds.

        Raises:
            ValueError: for anything else, or pictures where no CLIP was lent.
        """
        floats = isinstance(value, Tensor) and value.is_floating_point()
        if floats and value.ndim == 4:
            return embedded(self.lent, value)
        if not floats or value.ndim != 2 or value.shape[1] != self.width:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"embeddings (B, {self.width}) or pictures (B, 3, H, W) are accepted, got {given}")
        return value

    def encode(self, network: nn.Module, value: Tensor) -> Condition:
        """A vector and tokens."""
        return network.embedding.image(value)

    def nothing(self, network: nn.Module, n: Count) -> Tensor:
        """(n, E) zeros."""
        return torch.zeros(n, self.width)

    def takes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(E,)."""
        return (self.width,)

    def hand(self, drawn: Tensor, level: NonNegative, left: NonNegative, generator) -> Tensor:
        """What a prior drew, as it is."""
        return drawn

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Tensor | None, None]:
        """The picture whose variations are drawn; nothing where none is named."""
        if not given.get("like"):
            return None, None
        return read_picture(given["like"], side(self.lent))[None], None


@checked
class CaptionAndEmbedding(Caption):
    """A caption as the network's own tokens, with z_t, the frozen CLIP's embedding of it; both are dropped together.

    Ramesh et al. 2022, section 2.2. Its value is (tokens (B, L), z_t (B, E)); the null is no tokens and zeros.

    Args:
        tokenizer: Reads captions.
        width: E.
        clip: Name of the CLIP.
        p_drop: Probability of the null in training; .1 in the paper.
    """

    vector = False

    def __init__(self, tokenizer: Tokenizer, width: Count, clip: str = "", p_drop: Share = 0.0):
        super().__init__(tokenizer, p_drop)
        self.width, self.frozen = width, clip

    def check(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        """The network was made for this tokenizer."""
        _require_vocabulary(network.config.vocabulary, network.config.context, self.tokenizer)

    def read(self, value, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Captions, which the frozen CLIP embeds, or (tokens, z_t).

        Raises:
            ValueError: for anything else, or what the tokenizer refuses.
        """
        if _is_pair(value):
            return super().read(value[0], shape), value[1]
        captions = [value] if isinstance(value, str) else value
        tokens = super().read(captions, shape)
        return tokens, embedded(self.lent, tokens if isinstance(captions, Tensor) else list(captions))

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, Tensor]:
        """The columns "caption" and "text_embedding"."""
        return column(batch, self.key), column(batch, "text_embedding")

    def encode(self, network: nn.Module, value: tuple[Tensor, Tensor]) -> Condition:
        """Tokens of the encoded text, and one of its embedding."""
        return network.read_tokens(*value)

    def nothing(self, network: nn.Module, n: Count) -> tuple[Tensor, Tensor]:
        """(n, L) tokens of empty captions, (n, E) zeros."""
        return super().nothing(network, n), torch.zeros(n, self.width)

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Value, Tensor]:
        """The captions in turn."""
        captions, number = in_turn(given, n)
        return tuple(part[number] for part in self.read(captions, shape)), number


@checked
class CaptionStates(Part):
    """A caption as the states of a frozen CLIP's text tower, and its embedding, as Karlo reads it.

    Its value is (states (B, L, W), (B, L) which count, z_t (B, E)). The null is what the CLIP makes of the empty text.

    Args:
        width: Of states and embedding.
        context: L.
        clip: Name of the CLIP.
        p_drop: Probability of the null in training.
    """

    key, judge, nullable, questions = "caption", "caption", True, CAPTION

    def __init__(self, width: Count, context: Count, clip: str = "", p_drop: Share = 0.0):
        self.width, self.context, self.frozen, self.p_drop = width, context, clip, p_drop

    def read(self, value, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Captions, or (states, mask, z_t).

        Raises:
            ValueError: for anything else.
        """
        if isinstance(value, (tuple, list)) and len(value) == 3 and all(isinstance(v, Tensor) for v in value):
            return tuple(value)
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"a caption, a list of captions or (states, mask, z_t) are accepted, got {type(value)}")
        with torch.no_grad():
            return self.lent.text_states(list(captions))

    def observe(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> tuple[Tensor, Tensor, Tensor]:
        """The columns "text_states", "text_mask" and "text_embedding"."""
        return tuple(column(batch, name) for name in ("text_states", "text_mask", "text_embedding"))

    def encode(self, network: nn.Module, value: tuple[Tensor, Tensor, Tensor]) -> Condition:
        """As the network takes states."""
        return network.read_states(*value)

    def nothing(self, network: nn.Module, n: Count) -> tuple[Tensor, Tensor, Tensor]:
        """The empty text, n times."""
        return tuple(part.expand(n, *part.shape[1:]) for part in self.read([""], ()))

    def answer(self, given: Mapping[str, object], n: int, shape: tuple[int, ...]) -> tuple[Value, Tensor]:
        """The captions in turn."""
        captions, number = in_turn(given, n)
        return tuple(part[number] for part in self.read(captions, shape)), number


@checked
@torch.no_grad()
def embedded(clip: nn.Module, what: Tensor | Sequence[str]) -> Tensor:
    """Pictures (B, 3, H, W), or captions or their tokens -> (B, E), as long as the CLIP makes them.

    Args:
        clip: A clean ``systems.clip.CLIP``.
        what: Pictures in [-1, 1] of its size or a multiple, captions, or tokens.
    """
    if isinstance(what, Tensor) and what.is_floating_point():
        images = _fitted(what.to(clip.device, clip.dtype), side(clip))
        return clip.network.image(images, torch.full((len(images),), -1, device=clip.device)).to(what.device)
    return clip.network.text(clip.tokens(what))


def side(clip: nn.Module) -> int:
    """Side in pixels of the pictures that a CLIP sees."""
    return getattr(clip.network, "size", None) or clip.shape[1]


def _fitted(images: Tensor, size: int) -> Tensor:
    """Pictures that are a whole number of times as large as a CLIP sees them, averaged down; others as they are."""
    times = images.shape[2] // size
    whole = times > 1 and tuple(images.shape[2:]) == (times * size, times * size)
    return F.avg_pool2d(images, times) if whole else images


def _is_pair(value) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, Tensor) for v in value)


def _require_vocabulary(vocabulary: int | None, context: Count, tokenizer: Tokenizer) -> None:
    if (vocabulary, context) != (tokenizer.size, tokenizer.context):
        raise ValueError(
            f"the network reads {context} of {vocabulary} tokens, but the tokenizer {tokenizer.name!r} writes "
            f"{tokenizer.context} of {tokenizer.size}"
        )
