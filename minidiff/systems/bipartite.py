"""A picture as two parts, what CLIP sees of it and what it does not: z_i and x_T (Ramesh et al. 2022, section 3).

z_i comes from the frozen CLIP of the decoder, x_T from DDIM inversion given z_i; the decoder makes a picture of both.
A diffusion autoencoder is a decoder too, with a code of its own in the place of z_i (``systems.diffae``).
Nothing is clipped on either way, since clipping cannot be undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import inversion
from ..arguments import Count, Finite, NonNegative, Randomness, checked, floats
from ..denoiser import conditioned
from ..guidance import Guide
from ..sampler import Sampler, ddim
from ..schedule import respaced
from .diffusion import Diffusion
from .draw import PLAIN, Levels, draw
from .embeddings import embedded


@checked
@dataclass(frozen=True)
class Bipartite:
    """Pictures to (x_T, z_i) and back, and what can be done in between.

    Attributes:
        decoder: Told an image embedding: by a frozen CLIP that it was lent (``systems.unclip``), or by an encoder of
            its own (``systems.diffae``).
        levels: Steps of the chain, both ways; see ``systems.draw.draw``.
        guide: Of the way back. Guided, x_T is no longer the noise that gives the picture back.
        method: Of the way there; ``inversion.ddim_inversion()`` when left out.
        sampler: Of the way back; ``ddim()`` when left out, which goes with that.

    Raises:
        ValueError: for a system that is told no image embedding.
    """

    decoder: Diffusion
    levels: Levels = 50
    guide: Guide = PLAIN
    method: Sampler | None = None
    sampler: Sampler | None = None

    def __post_init__(self):
        if self.decoder.part("embedding") is None:
            raise ValueError("both halves of a picture are decoded by a system that is told an image embedding")

    def embed(
        self,
        x: floats("B C H W"),
    ) -> Tensor:
        """z_i (B, E) of pictures (B, C, H, W)."""
        return self.decoder.read({"embedding": x}, len(x))["embedding"]

    def encode(
        self,
        x: floats("B C H W"),
        caption=None,
    ) -> tuple[Tensor, Tensor]:
        """x_T (B, C, H, W) and z_i (B, E) of pictures.

        Args:
            x: (B, C, H, W) in [-1, 1].
            caption: What the decoder is told beside z_i, on the way back too; nothing when left out.
        """
        z = self.embed(x)
        with torch.no_grad():
            told = self.decoder.condition(len(x), **_told(z, caption))
        chain = respaced(self.decoder.schedule, self.levels)
        with torch.no_grad():
            x_0 = self.decoder.begun(x.to(self.decoder.dtype))
        return inversion.encode(conditioned(self.decoder, told), chain, x_0, self.method), z

    def decode(
        self,
        x_T: floats("B C H W"),
        z: floats("b E"),
        caption=None,
        sampler: Sampler | None = None,
        generator: Randomness = None,
    ) -> Tensor:
        """Pictures (B, C, H, W) of x_T (B, C, H, W) and z_i (B or 1, E)."""
        return draw(
            self.decoder,
            len(x_T),
            guide=self.guide,
            levels=self.levels,
            sampler=sampler or self.sampler or ddim(),
            x_T=x_T,
            threshold=None,
            generator=generator,
            **_told(z, caption),
        )

    def variations(
        self, x: floats("B C H W"), n: Count, eta: NonNegative = 1.0, generator: Randomness = None, caption=None
    ) -> Tensor:
        """n pictures with the embedding of one (1, C, H, W): DDIM with eta > 0 from its x_T (section 3.1).

        The larger eta, the more of what is not in the embedding is drawn anew; at 0 all are the picture itself.
        """
        x_T, z = self.encode(x[:1], caption)
        return self.decode(x_T.expand(n, *x_T.shape[1:]), z, caption, ddim(eta), generator)

    def interpolate(
        self, a: floats("A C H W"), b: floats("B C H W"), thetas: Sequence[Finite], x_T: floats("T C H W") | None = None
    ) -> Tensor:
        """Pictures on the way from one (1, C, H, W) to another, embeddings by slerp (section 3.2).

        Args:
            a: Where theta = 0 is.
            b: Where theta = 1 is.
            thetas: Places on the way.
            x_T: (1, C, H, W) for all of them: only what is in the embedding changes then, and the ends are not the
                pictures themselves. When left out, x_T goes from that of a to that of b, by slerp as well.

        Returns:
            (len(thetas), C, H, W).
        """
        theta = torch.as_tensor(list(thetas), dtype=torch.float64)
        if x_T is None:
            (noise_a, z_a), (noise_b, z_b) = self.encode(a[:1]), self.encode(b[:1])
            x_T = inversion.slerp(noise_a, noise_b, theta.to(a.device))
        else:
            z_a, z_b = self.embed(a[:1]), self.embed(b[:1])
            x_T = x_T[:1].expand(len(theta), *x_T.shape[1:])
        return self.decode(x_T, inversion.slerp(z_a, z_b, theta.to(z_a.device)))

    def text_diff(
        self,
        x: floats("B C H W"),
        after: str,
        before: str,
        thetas: Sequence[Finite],
    ) -> Tensor:
        """Pictures (len(thetas), C, H, W) that turn from what a text says of one to what another says (section 3.3).

        Args:
            x: (1, C, H, W).
            after: Caption to go to.
            before: Caption of the picture; "" where there is none.
            thetas: Shares of the way, up to .25 to .5 in the paper; x_T stays.
        """
        x_T, z = self.encode(x[:1])
        texts = F.normalize(embedded(self.decoder.part("embedding").lent, [after, before]), dim=1).to(z.device)
        theta = torch.as_tensor(list(thetas), dtype=torch.float64, device=z.device)
        turned = inversion.text_diff(z, texts[:1], texts[1:], theta)
        return self.decode(x_T.expand(len(turned), *x_T.shape[1:]), turned)


def _told(z: Tensor, caption) -> dict[str, object]:
    """What a decoder is told; some are told no captions."""
    return {"embedding": z} if caption is None else {"embedding": z, "caption": caption}
