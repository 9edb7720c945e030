"""minidiff: guided diffusion in four nouns (noise level, prediction, denoiser, sampler) and functions between them."""

from __future__ import annotations

import os
import sys

if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)):
    del sys.path[0]  # ``python -m minidiff`` among hand-ins must not import one that is called ``csv.py``

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("minidiff")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def load(ref: str | os.PathLike, **kwargs):
    """Load a system by its name, such as "digits", or by its folder; see ``minidiff.store.load``."""
    from .store import load

    return load(ref, **kwargs)
