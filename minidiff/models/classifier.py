"""ADM's noisy classifier: the encoder half of the U-Net with an attention-pooled head."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import checked
from .layers import AttentionPool, GroupNorm
from .unet import Encoder, UNetConfig, encoder, time_embedding


@checked
class Classifier(Encoder):
    """log p(c | x_t) up to a constant (Dhariwal and Nichol 2021, section 4.1).

    ``config.out_channels`` is the number of classes.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.time_embed = time_embedding(config.channels)
        self.input_blocks, self.middle_block, skips = encoder(config)
        width, resolution = skips[-1], config.size // 2 ** (len(config.channel_mult) - 1)
        pool = AttentionPool(resolution, width, config.head_count(width), config.out_channels)
        self.out = nn.Sequential(GroupNorm(config.groups, width), nn.SiLU(), pool)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, classes) logits.

        Raises:
            ValueError: for the wrong channels or size.
        """
        return self.out(self._encoded(x, time))

    def features(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, width), the pooled features that the last linear map reads."""
        norm, activation, pool = self.out
        return pool.features(activation(norm(self._encoded(x, time))))

    def layers(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """(B, C, H, W), (B,) -> the feature maps of its input blocks, from the finest to the coarsest."""
        x = self.halved(x)
        return self.encode(x, self.embed_time(x, time))[1]

    def _encoded(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.halved(x)
        return self.encode(x, self.embed_time(x, time))[0]
