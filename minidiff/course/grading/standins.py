"""What a hand-in may not have in its sandbox, but does not need either: the same work in one process.

Other processes become threads, workers of a data loader the loader itself, a compiled function the function. Folders
that are there already can be made, as on a machine where they are not.
"""

from __future__ import annotations

import concurrent.futures
import inspect
import multiprocessing
import multiprocessing.dummy
import multiprocessing.pool  # before it is told that there is but one context
import multiprocessing.queues
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.multiprocessing
from torch.utils.data import DataLoader

_PROCESSES = ("Process", "Pool", "Queue", "JoinableQueue", "Manager", "Value", "Array", "Pipe", "Lock", "RLock")
_PROCESSES += ("Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier")
_OF_WORKERS = ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout")


def install(folders: Iterable[str]) -> None:
    """Put them in place in this process; ``folders`` can be made although they are there."""
    for module in (multiprocessing, torch.multiprocessing):
        for name in _PROCESSES:
            setattr(module, name, getattr(multiprocessing.dummy, name))
        module.get_context = lambda method=None: multiprocessing.dummy
        module.set_start_method = lambda *args, **kwargs: None
        module.SimpleQueue = _queue
    BaseContext.SimpleQueue = lambda self: _queue()  # of pools of threads, too
    concurrent.futures.ProcessPoolExecutor = _Executor
    DataLoader.__init__ = _without_workers(DataLoader.__init__)
    torch.compile = lambda model=None, **options: (lambda f: f) if model is None else model
    shutil.copymode = shutil.copystat = lambda *args, **kwargs: None  # owners and times are not a hand-in's to set
    os.mkdir = _lenient(os.mkdir, {os.path.realpath(folder) for folder in folders})


def _queue() -> multiprocessing.queues.SimpleQueue:
    return multiprocessing.queues.SimpleQueue(ctx=multiprocessing.dummy)  # its locks are threads' locks


class _Executor(ThreadPoolExecutor):
    def __init__(self, max_workers=None, mp_context=None, initializer=None, initargs=(), max_tasks_per_child=None):
        super().__init__(max_workers, initializer=initializer, initargs=initargs)


def _without_workers(begin: Callable) -> Callable:
    signature = inspect.signature(begin)

    @wraps(begin)
    def init(self, *args, **kwargs):
        given = signature.bind(self, *args, **kwargs)
        of_workers = {name: signature.parameters[name].default for name in _OF_WORKERS}
        given.arguments.update({name: value for name, value in of_workers.items() if name in given.arguments})
        begin(*given.args, **given.kwargs)

    return init


def _lenient(mkdir: Callable, there: set[str]) -> Callable:
    def make(path: Any, *args, **kwargs) -> None:
        if not (isinstance(path, str | os.PathLike) and os.path.realpath(path) in there):
            mkdir(path, *args, **kwargs)

    return make
