"""Processes that read ahead, and the shared memory in which they hand over what they read."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import DataLoader

from ..arguments import checked

log = logging.getLogger(__name__)


@checked
def shared(tensor: Tensor) -> Tensor:
    """The tensor where worker processes reach it too; itself where the system lends no shared memory."""
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        log.info("what workers find broken is not seen here: %s", error)
        return tensor


def loaded(loader: DataLoader) -> Iterator:
    """What a loader yields, its workers started.

    Raises:
        ValueError: when they find no shared memory, or too little: containers lend 64 MB unless told otherwise.
    """
    try:
        if loader.num_workers:
            [multiprocessing.Queue() for _ in range(loader.num_workers + 1)]  # a loader that fails here prints more
        ahead = iter(loader)
    except OSError as error:
        raise _no_room(loader, error) from None
    return _handed_over(loader, ahead)


def _handed_over(loader: DataLoader, ahead: Iterator) -> Iterator:
    try:
        yield from ahead
    except RuntimeError as error:
        if "shared memory" not in str(error):
            raise
        raise _no_room(loader, error) from None


def _no_room(loader: DataLoader, error: Exception) -> ValueError:
    return ValueError(
        f"{loader.num_workers} workers hand over images in shared memory, and this system lends too little of it "
        f"({str(error).splitlines()[-1]}): take 0 workers (data.workers=0, --workers 0), or give /dev/shm more room "
        "(docker run --shm-size 8g)"
    )
