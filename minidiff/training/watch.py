"""What ends training before its last step: numbers that are not finite, and Ctrl-C."""

from __future__ import annotations

import signal
import threading

import torch
from torch import Tensor, nn

from ..arguments import checked
from .ema import local
from .parallel import everyones

WATCHED = ("the loss", "the norm of the gradient", "a weight")


@checked
class Watch:
    """Looks at the end of each step, in all processes alike; inside ``with``, Ctrl-C waits for that moment.

    A second Ctrl-C ends the process at once, as ever.
    """

    def __init__(self):
        self.interrupted, self._before = False, None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def _note(self, number, frame) -> None:
        self.interrupted = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def look(self, loss: Tensor, norm: Tensor, module: nn.Module) -> tuple[str, bool]:
        """After a step: which of its numbers is not finite ("" where all are), and whether someone pressed Ctrl-C.

        Args:
            loss: (B,) of this process.
            norm: Of the gradient.
            module: Whose parameters were moved.
        """
        own = [local(p.detach()) for p in module.parameters()]  # a process may have no part of a small one
        largest = torch._foreach_norm([weights for weights in own if weights.numel()], float("inf"))
        finite = [loss.isfinite().all(), norm.isfinite().all(), torch.stack(largest).isfinite().all()]
        seen = torch.stack([*(~value for value in finite), torch.tensor(self.interrupted, device=loss.device)])
        *bad, stop = everyones(seen[None].byte()).amax(0).bool().tolist()
        return next((what for what, is_bad in zip(WATCHED, bad, strict=True) if is_bad), ""), stop
