"""Checkpoints: one safetensors file, replaced atomically, never unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..arguments import Share, checked
from ..files import write_atomically

FORMAT = "minidiff-checkpoint-1"


@checked
def save_checkpoint(path: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Save tensors and JSON-able meta; the checkpoint before is kept as ``previous.safetensors``.

    Raises:
        ValueError: for tensors that are not finite, by name; nothing is written.
    """
    require_finite(tensors, f"what {path} should hold")
    write_atomically(path, _content(tensors, meta), keep=path.with_name("previous.safetensors"))


def _content(tensors: dict[str, Tensor], meta: dict) -> bytes:
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps(meta)
    return save(contiguous, metadata={"format": FORMAT, "meta": text, "sha256": _checksum(contiguous, text)})


def _checksum(tensors: dict[str, Tensor], meta: str) -> str:
    """Hexadecimal SHA-256 of the meta and of all tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256(meta.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and meta of a checkpoint.

    Raises:
        ValueError: for a missing, truncated or foreign file, one that is not what its checksum says (where it has one),
            or numbers that are not finite, by name. Nothing is written.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118, the file is no dict
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated, or no safetensors file ({error})") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of minidiff (format {header.get('format')!r})")
    text = header.get("meta", "")
    if "sha256" in header and header["sha256"] != _checksum(tensors, text):
        raise ValueError(f"{path} is damaged: its bytes are not those that were written")
    require_finite(tensors, str(path))
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its meta is no JSON ({error})") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} is damaged: its meta is no mapping")
    return tensors, meta


@checked
def average_prefix(decay: Share) -> str:
    """What the names of an average's tensors begin with."""
    return f"ema {decay}."


@checked
def averaged(tensors: dict[str, Tensor], decay: Share) -> dict[str, Tensor]:
    """The averaged weights among the tensors of a checkpoint, by their own names."""
    prefix = average_prefix(decay)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@checked
def require_fit(tensors: dict, own: dict, where: str, what: str) -> None:
    """Raise ValueError, naming them, when tensors are missing, unexpected, of another shape or no numbers."""
    common = sorted(own.keys() & tensors.keys())
    shapes = {k: (tuple(tensors[k].shape), tuple(own[k].shape)) for k in common}
    wrong = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": [f"{k} {theirs} for {ours}" for k, (theirs, ours) in shapes.items() if theirs != ours],
        "no floating-point numbers": [
            k for k in common if own[k].is_floating_point() and not tensors[k].is_floating_point()
        ],
    }
    problems = [f"{kind}: {_some(names)}" for kind, names in wrong.items() if names]
    if problems:
        raise ValueError(f"{where} does not fit {what}; {'; '.join(problems)}")


@checked
def require_finite(tensors: dict, where: str) -> None:
    """Raise ValueError, naming them, when tensors hold a NaN or an infinity."""
    bad = sorted(k for k, v in tensors.items() if v.is_floating_point() and not bool(v.isfinite().all()))
    if bad:
        raise ValueError(f"{where} is not finite: {_some(bad)}")


def _some(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_weights(module: nn.Module, path: Path) -> dict:
    """Load exported weights into a module and return their meta.

    Raises:
        ValueError: for an unreadable file, or one whose tensors are missing, unexpected or of another shape, by name.
    """
    tensors, meta = load_checkpoint(path)
    own = module.state_dict()
    require_fit(tensors, own, str(path), "this network")
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
    return meta


@checked
def exported(module_state: dict[str, Tensor], path: Path, meta: dict) -> bytes:
    """The content of a file of weights in float16, for publication.

    Raises:
        ValueError: for weights that are not finite in float16, by name.
    """
    half = {k: v.half() if torch.is_floating_point(v) else v for k, v in module_state.items()}
    require_finite(half, f"what {path} should hold, in float16,")
    return _content(half, meta)


@checked
def export_weights(module_state: dict[str, Tensor], path: Path, meta: dict) -> None:
    """Save weights in float16 for publication; nothing is written where ``exported`` refuses them."""
    write_atomically(Path(path), exported(module_state, path, meta))
