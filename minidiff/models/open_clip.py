"""CLIPs of open_clip: released ones by name or file, and the network of a small one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import checked
from ..words import nearest
from .clip import CLIPConfig, Towers, channelwise, framed


def require_open_clip(what: str):
    """The module open_clip.

    Raises:
        ValueError: when it is not installed, naming what needs it.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(f"{what}: open_clip is not installed; pip install open-clip-torch") from error
    return open_clip


def load_open_clip(name: str, device: str = "cpu") -> tuple[nn.Module, Callable[[list[str]], Tensor]]:
    """A released model of open_clip, frozen, and its tokenizer.

    Args:
        name: "ViT-B-32:TAG" (published weights, fetched when they are not in the cache unless the environment variable
            HF_HUB_OFFLINE is 1), "ViT-B-32:/path/weights.safetensors", "local-dir:/path" or "hf-hub:org/name".
        device: Where it computes.

    Raises:
        ValueError: for an unknown model, or weights that are not there.
    """
    open_clip = require_open_clip(name)
    local = name.startswith(("local-dir:", "hf-hub:"))
    model_name, weights = (name, None) if local else name.partition(":")[::2]
    if not local and model_name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {model_name!r}: {nearest(model_name, open_clip.list_models())}")
    logging.disable(logging.ERROR)  # it logs what it then raises
    try:
        model = open_clip.create_model(model_name, pretrained=weights, device=device, require_pretrained=True)
    except Exception as error:  # each way to fetch weights has errors of its own
        reason = " ".join(str(error).split())[:200]
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        offline = "HF_HUB_OFFLINE is set, so nothing is fetched; " if offline else ""
        raise ValueError(
            f"the weights of {name} are not here or cannot be read ({reason}); {offline}"
            f"a local file is named MODEL:/path/weights.safetensors"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return model.eval().requires_grad_(False), open_clip.get_tokenizer(model_name)


def image_size(model: nn.Module) -> int:
    """Side in pixels of the images that a model of open_clip takes."""
    size = model.visual.image_size
    return size if isinstance(size, int) else size[0]


@checked
def normalised(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as a released model of open_clip takes them."""
    return channelwise((images + 1) / 2, model.visual.image_mean, model.visual.image_std)


class ReleasedCLIP(Towers):
    """A released model of open_clip behind the interface of the other CLIP networks; it knows no time.

    Args:
        model: From ``load_open_clip``.
    """

    noise_aware = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.size = model, image_size(model)

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), as released."""
        return self.model.logit_scale.exp().reshape(())

    def image(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E); another size is brought to the model's, bicubically."""
        if tuple(x.shape[2:]) != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bicubic", align_corners=False, antialias=True)
        return self.model.encode_image(normalised(self.model, x))

    def text(self, tokens: Tensor) -> Tensor:
        """(B, L) of the model's own tokenizer -> (B, E)."""
        return self.model.encode_text(tokens)

    def states(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L, W), of every place what leaves the last norm of the text tower.

        Raises:
            ValueError: for a model whose text tower is made otherwise.
        """
        model = self.model
        if not all(hasattr(model, name) for name in ("token_embedding", "positional_embedding", "ln_final")):
            raise ValueError(f"the states of the text tower of a {type(model).__name__} cannot be had; a CLIP's can")
        x = model.token_embedding(tokens) + model.positional_embedding
        return model.ln_final(model.transformer(x, attn_mask=model.attn_mask))

    def counted(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, L) bool, the places up to the end of a text, its end included."""
        end = tokens.argmax(1, keepdim=True)  # CLIP's end has the largest number
        return torch.arange(tokens.shape[1], device=tokens.device) <= end


class OpenCLIP(Towers):
    """The two towers of open_clip in a shape of one's own, with our tokens: a small CLIP of clean images.

    Raises:
        ValueError: when open_clip is not installed, or in ``image`` and ``text`` for what does not fit the shape.
    """

    noise_aware = False

    def __init__(self, config: CLIPConfig):
        super().__init__()
        self.config = config
        vision = {
            "image_size": config.size,
            "patch_size": config.patch,
            "width": config.width,
            "layers": config.layers,
            "head_width": config.width // config.heads,
        }
        text = {
            "context_length": config.context,
            "vocab_size": config.vocabulary,
            "width": config.text_width,
            "layers": config.text_layers,
            "heads": config.text_heads,
            "pool_type": "eos",
            "eos_id": config.ends[1],
        }
        self.model = require_open_clip("a CLIP without noise levels").CLIP(
            config.embedding, vision, text, nonscalar_logit_scale=True
        )

    @property
    def logit_scale(self) -> Tensor:
        """(1,) log 1/tau."""
        return self.model.logit_scale

    def image(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, E); the time is not looked at."""
        return self.model.encode_image(self.config.pixels(x))

    def text(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 for none -> (B, E)."""
        return self.model.encode_text(framed(tokens, self.config)[0])

    def states(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 for none -> (B, context, W), of every place what leaves the last norm of the text tower."""
        model, (read, _) = self.model, framed(tokens, self.config)
        x = model.token_embedding(read) + model.positional_embedding
        return model.ln_final(model.transformer(x, attn_mask=model.attn_mask))

    def counted(self, tokens: Tensor) -> Tensor:
        """(B, L) -> (B, context) bool, the places up to the end of a text, its start and end included."""
        end = framed(tokens, self.config)[1][:, None]
        return torch.arange(self.config.context, device=tokens.device) <= end
