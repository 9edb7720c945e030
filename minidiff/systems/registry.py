"""Systems by name. Each registers itself beside its code, and is imported when it is first asked for.

A system of one's own is a module: ``system: mine`` in a recipe imports ``mine``, from wherever Python finds it or from
the folder one stands in, and takes what it registered as "mine".
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

from torch import nn

from ..words import nearest

HOMES = {
    "class_conditional": "adm",
    "upsampler": "adm",
    "classifier": "classifier",
    "sr3": "cascade",
    "cdm": "cascade",
    "regression": "cascade",
    "clip": "clip",
    "glide": "glide",
    "glide_upsampler": "glide",
    "glide_cdm": "glide",
    "inpainter": "inpainting",
    "glide_inpainter": "inpainting",
    "glide_upsampler_inpainter": "inpainting",
    "unclip_decoder": "unclip",
    "unclip_upsampler": "unclip",
    "unclip_prior": "unclip_prior",
    "unclip_ar_prior": "ar_prior",
    "imagen": "imagen",
    "imagen_upsampler": "imagen",
    "imagen_efficient": "imagen",
    "imagen_efficient_upsampler": "imagen",
}
_registered: dict[str, System] = {}


@dataclass(frozen=True)
class NoOptions:
    """A system without options of its own."""


@dataclass(frozen=True)
class System:
    """How a system is made.

    Attributes:
        name: Its name in recipes.
        network: From a config to the network; the type of its argument is that of a recipe's ``network``.
        options: Dataclass of the options that a recipe may give it.
        make: ``(network, schedule, options, data) -> system``.
        scheduled: Whether it has noise levels.
    """

    name: str
    network: Callable[..., nn.Module]
    options: type
    make: Callable[..., nn.Module]
    scheduled: bool

    @property
    def config(self) -> type:
        """Dataclass of the network's shape."""
        maker = self.network.__init__ if isinstance(self.network, type) else self.network
        return get_type_hints(maker)["config"]


def system(name: str, *, network: Callable[..., nn.Module], options: type = NoOptions, scheduled: bool = True):
    """Register what follows as the maker of a system: ``(network, schedule, options, data) -> system``.

    Args:
        name: Its name in recipes.
        network: From a config, a dataclass that its annotation names, to the network.
        options: Dataclass of its options.
        scheduled: Whether it has noise levels.
    """

    def register(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _registered[name] = System(name, network, options, make, scheduled)
        return make

    return register


def find(name: str) -> System:
    """The system of that name.

    Raises:
        ValueError: when there is none, naming the nearest.
    """
    if name not in _registered:
        _import(name)
    if name not in _registered:
        raise ValueError(f"unknown system {name!r}: {nearest(name, {*HOMES, *_registered})}")
    return _registered[name]


def _import(name: str) -> None:
    """Import the module that registers a system: ours, or one of that name, but none of Python itself."""
    if name in HOMES:
        importlib.import_module(f"{__package__}.{HOMES[name]}")
    elif (
        name.isidentifier()
        and name not in sys.stdlib_module_names
        and (Path(f"{name}.py").is_file() or importlib.util.find_spec(name))
    ):
        here = str(Path.cwd())
        sys.path.insert(0, here)
        try:
            importlib.import_module(name)
        finally:
            sys.path.remove(here)
