"""The sandboxed side: executes a hand-in, then lets the grader call what it defined."""

from __future__ import annotations

import contextlib
import os
import random
import sys

import numpy as np
import torch

from minidiff.course import exercises
from minidiff.course.grading import sandbox, standins
from minidiff.course.grading.channel import Channel, Gone
from minidiff.course.grading.formats import Block
from minidiff.course.grading.handin import execute
from minidiff.course.grading.wire import Peer

SEED = 1  # not the grader's, or an answer would draw the very numbers that a case drew


def main(config: dict, layers: list[str], writable: list[str]) -> None:
    """Serve ``ready``, ``load``, ``get`` and ``seed`` (shared in this order) until the grader hangs up."""
    torch.set_num_threads(1)
    exercises.silent = True
    counted = "seccomp" not in layers or any("(user" in layer for layer in layers)  # there, this process alone counts
    layers.append(sandbox.limit_resources(config["memory_mb"], config["cpu_seconds"], counted, config.get("status_fd")))
    standins.install(writable)
    layers.append(sandbox.add_audit_hook(config["readable"], writable))
    sys.path.append(os.getcwd())  # its own folder: what ``%%writefile`` puts there can be imported
    namespace = {}

    def ready() -> list[str]:
        return layers

    def load(blocks: list, answers: list[str]) -> dict[str, list[str]]:
        seed()
        found, failed = execute([Block(source, tuple(tags)) for source, tags in blocks], answers)
        namespace.update(found)
        return {name: failed[name] for name in answers if name in failed}

    def get(name: str):
        if name not in namespace:
            raise LookupError(f"the hand-in does not define {name}")
        if namespace[name] is ...:
            raise exercises.NotAttempted("not attempted")
        return namespace[name]

    def seed() -> None:
        torch.manual_seed(SEED)
        np.random.seed(SEED)
        random.seed(SEED)

    channel = Channel(config["read_fd"], config["write_fd"])
    with contextlib.suppress(Gone):
        # an answer's SystemExit or KeyboardInterrupt is that answer's affair
        Peer(channel, ready, load, get, seed, caught=BaseException).serve()
