"""Speed and memory of our U-Net beside diffusers' and beside a plain one, at equal size, in one run.

The contestants take turns, so that a machine that slows down slows all of them; ratios are taken within a turn.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .arguments import Count, checked
from .models import layers
from .models.unet import UNet, UNetConfig

SIZE, GROUPS = 32, 8
OURS = UNetConfig(size=SIZE, channels=88, channel_mult=(1, 2, 2, 2), blocks=2, attention=(16,), heads=4, groups=GROUPS)
THEIRS = (96, 192, 192, 192)  # the same shape, wider: as many parameters as ours, within 2 percent


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: None = None, causal: bool = False) -> Tensor:
    """The same attention, of pixels alone, with its matrix of weights written out."""
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


@dataclass(frozen=True)
class Contestant:
    """One network with one set of choices.

    Attributes:
        name: What to call it.
        build: The network, called with (x, time).
        bf16: Autocast to bfloat16.
        channels_last: Weights and activations with channels last.
        compiled: Through ``torch.compile``.
        plain: Attention with its weights written out.
    """

    name: str
    build: Callable[[], nn.Module]
    bf16: bool = False
    channels_last: bool = False
    compiled: bool = False
    plain: bool = False

    def network(self, device: torch.device) -> nn.Module:
        """The network on a device, as chosen."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        network = self.build().to(device, memory_format=layout)
        network.memory_format = layout
        if self.compiled:
            network.compile()
        return network


class Diffusers(nn.Module):
    """diffusers' ``UNet2DModel`` called as our U-Net is, with attention at the same resolution."""

    def __init__(self):
        from diffusers import UNet2DModel

        super().__init__()
        attends = [SIZE // 2**i in OURS.attention for i in range(len(THEIRS))]
        self.net = UNet2DModel(
            sample_size=SIZE,
            layers_per_block=OURS.blocks,
            block_out_channels=THEIRS,
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            attention_head_dim=THEIRS[1] // OURS.heads,
            norm_num_groups=GROUPS,
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, 3, H, W), (B,) -> (B, 3, H, W)."""
        return self.net(x.contiguous(memory_format=self.memory_format), time).sample


def contestants(compiled: bool = False) -> list[Contestant]:
    """Ours first, then what it is compared with."""
    ours = lambda: UNet(OURS)
    return [
        Contestant("minidiff, bf16, channels last", ours, bf16=True, channels_last=True, compiled=compiled),
        Contestant("minidiff, channels last", ours, channels_last=True, compiled=compiled),
        Contestant("minidiff, plain choices", ours, plain=True),
        Contestant("diffusers, default", Diffusers),
        Contestant("diffusers, bf16, channels last", Diffusers, bf16=True, channels_last=True, compiled=compiled),
    ]


class Race:
    """One contestant at work on one device.

    Args:
        contestant: Who.
        batch: Images at a time.
        device: Where.
    """

    def __init__(self, contestant: Contestant, batch: int, device: torch.device):
        torch.manual_seed(0)
        self.contestant, self.batch, self.device = contestant, batch, device
        self.network = contestant.network(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), fused=True)
        self.x = torch.randn(batch, 3, SIZE, SIZE, device=device)
        self.time = torch.rand(batch, device=device) * 1000

    def forward(self) -> Tensor:
        """One pass of the network."""
        unfused = mock.patch.object(layers, "attention", plain_attention) if self.contestant.plain else nullcontext()
        with unfused, torch.autocast(self.device.type, torch.bfloat16, enabled=self.contestant.bf16):
            return self.network(self.x, self.time).float()

    def training(self) -> None:
        """One optimiser step."""
        self.optimizer.zero_grad()
        self.forward().square().mean().backward()
        self.optimizer.step()

    @torch.no_grad()
    def sampling(self) -> None:
        """One pass without gradients."""
        self.forward()

    def seconds(self, task: str) -> float:
        """How long one step of "training" or "sampling" takes."""
        began = time.perf_counter()
        getattr(self, task)()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def operations() -> dict[str, float]:
    """Operations of one forward pass for one image, ours and theirs; a training step has three times as many."""
    out = {}
    for name, build in (("minidiff", lambda: UNet(OURS)), ("diffusers", Diffusers)):
        with torch.device("meta"):
            network = build()
            network.memory_format = torch.contiguous_format
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, SIZE, SIZE), torch.empty(1))
        out[name] = float(counter.get_total_flops())
    return out


class Ceiling:
    """What the machine can do at best: the largest rate among large convolutions and a matrix product.

    It is measured whenever the contestants are, between their turns, so that what slows the machine slows it as well;
    one shape alone is not the fastest on every machine.

    Args:
        bf16: In bfloat16, else float32.
        batch: Images at a time.
        device: Where.
    """

    def __init__(self, bf16: bool, batch: int, device: torch.device):
        self.device, self.best = device, 0.0
        dtype = torch.bfloat16 if bf16 else torch.float32
        self.shapes: list[tuple[nn.Module, Tensor, float]] = []
        for factor in (1, 2, 4):  # as wide and as large as the levels of our network
            channels, size = OURS.channels * factor, max(SIZE // factor, 1)
            conv = nn.Conv2d(channels, channels, 3, padding=1).to(device, dtype, memory_format=torch.channels_last)
            x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
            operations = 2.0 * 9 * channels**2 * size**2 * batch
            self.shapes.append((conv, x.contiguous(memory_format=torch.channels_last), operations))
        wide, rows = 8 * OURS.channels, 32 * batch
        product = nn.Linear(wide, wide).to(device, dtype)
        x = torch.randn(rows, wide, device=device, dtype=dtype)
        self.shapes.append((product, x, 2.0 * wide**2 * rows))

    @torch.no_grad()
    def measure(self) -> float:
        """Operations per second: the largest rate until now."""
        for module, x, operations in self.shapes:
            began = time.perf_counter()
            module(x)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.best = max(self.best, operations / (time.perf_counter() - began))
        return self.best


def _peak(index: int, batch: int, compiled: bool, queue) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    race = Race(contestants(compiled)[index], batch, device)
    race.training()
    queue.put(torch.cuda.max_memory_allocated() if device.type == "cuda" else _most_of_this_process())


def _most_of_this_process() -> int:
    """The most memory that this process had until now, in bytes; Windows says so to psutil, which training installs."""
    try:
        import resource
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # of Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_memory(index: int, batch: int, compiled: bool = False) -> int:
    """Peak memory in bytes of a process that does one training step: on a GPU of its tensors, else of all of it."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_peak, args=(index, batch, compiled, queue))
    child.start()
    child.join()
    if child.exitcode:
        raise ValueError(f"measuring memory failed in a process of its own (exit code {child.exitcode})")
    return queue.get()


def _turn(task: str, races: list[Race], ceilings: Iterable[Ceiling]) -> list[float]:
    """Seconds of every contestant, with a look at the ceiling after each."""
    seconds = []
    for race in races:
        seconds.append(race.seconds(task))
        for ceiling in ceilings:
            ceiling.measure()
    return seconds


@checked
def bench(batch: Count = 16, rounds: Count = 5, compiled: bool = False) -> dict:
    """Race all contestants.

    Returns:
        "ceiling": operations per second by precision; "rows": one dict per contestant and task with images per second
        (median), ``ratio`` of our first contestant's speed to this one's (median, lowest, highest over the rounds),
        share of the ceiling reached, and peak memory of training.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entrants = contestants(compiled)
    races, counted = [Race(c, batch, device) for c in entrants], operations()
    ceilings = {bf16: Ceiling(bf16, batch, device) for bf16 in (False, True)}
    memory, rows = [peak_memory(i, batch, compiled) for i in range(len(entrants))], []
    for task, passes in (("sampling", 1), ("training", 3)):
        for race in races:
            race.seconds(task)  # warm-up, compilation
        turns = [_turn(task, races, ceilings.values()) for _ in range(rounds)]
        for i, entrant in enumerate(entrants):
            ratios = [turn[i] / turn[0] for turn in turns]
            rate = batch / median(turn[i] for turn in turns)
            done = rate * passes * counted[entrant.name.partition(",")[0]]
            rows.append(
                {
                    "task": task,
                    "name": entrant.name,
                    "images_per_second": rate,
                    "ratio": (median(ratios), min(ratios), max(ratios)),
                    "flops_per_second": done,
                    "bf16": entrant.bf16,
                    "peak_memory": memory[i],
                }
            )
    for row in rows:  # when all has been measured
        row["of_ceiling"] = row["flops_per_second"] / ceilings[row.pop("bf16")].best
    size = {c.name: sum(p.numel() for p in r.network.parameters()) for c, r in zip(entrants, races, strict=True)}
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "rounds": rounds,
        "compiled": compiled,
        "parameters": size,
        "forward_flops": counted,
        "ceiling": {"fp32": ceilings[False].best, "bf16": ceilings[True].best},
        "rows": rows,
    }
