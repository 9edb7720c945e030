"""In what precision a network computes while it is trained; its weights and their averages stay in float32."""

from __future__ import annotations

import torch

from ..arguments import checked

PRECISIONS = ("no", "bf16")


@checked
def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context for a forward pass: float32, or bfloat16 where that is asked for and the device has it.

    A CPU without instructions for bfloat16 emulates them, which takes several times as long as float32 does: there the
    context is float32 too.

    Raises:
        ValueError: for an unknown precision.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in(precision, device) is torch.bfloat16)


@checked
def computes_in(precision: str, device: torch.device) -> torch.dtype:
    """What ``autocast`` computes in: ``torch.float32`` or ``torch.bfloat16``.

    Raises:
        ValueError: for an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"training.precision must be 'no' or 'bf16', got {precision!r}")
    has_bf16 = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if precision == "bf16" and has_bf16 else torch.float32
