"""What a recipe costs before it runs: parameters, floating-point operations, memory, time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..arguments import Count, checked
from ..condition import Condition
from ..models.layers import Stage
from .ema import EMA
from .precision import autocast

SECONDS_PER_DAY = 86400
STATES = 64  # tokens of a caption
TOWER = 77  # places of a frozen text tower
CPU_STEP = 1e12  # operations of a measured step on a CPU, at most: some seconds, unless one image takes more
CPU_IMAGE = 2e12  # operations above which an image is not measured on a CPU


@checked
@dataclass(frozen=True)
class Cost:
    """Of training by a recipe.

    Attributes:
        parameters: Number of weights.
        flops: Forward and backward pass for one image; a multiply-add counts as two. Convolutions and matrix products.
        state_bytes: Weights, gradients, optimiser and averages of one process; FSDP divides them among the processes.
        activation_bytes: What the backward pass of one image keeps.
        images: Images seen in the whole training.
    """

    parameters: int
    flops: float
    state_bytes: int
    activation_bytes: int
    images: int

    def days(self, gpus: int, flops_per_second: float, utilisation: float) -> float:
        """Days of training on ``gpus`` devices that reach this share of their peak."""
        return self.images * self.flops / (gpus * flops_per_second * utilisation) / SECONDS_PER_DAY


def cost(recipe) -> Cost:
    """Count the cost of a ``recipes.Recipe`` on the meta device: nothing is allocated, nothing computed."""
    network = recipe.build(empty=True).network
    config, saved = network.config, {}
    x = torch.empty(1, *config.in_shape, device="meta")
    t = torch.empty(1, device="meta")
    weights = {p.untyped_storage()._cdata for p in network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = _forward(network, x, t)  # without recomputation: what is kept then is counted below
        out.sum().backward()
    parameters = sum(p.numel() for p in network.parameters())
    flops, activations = counter.get_total_flops(), sum(saved.values())
    if recipe.training.checkpointing:
        flops, activations = flops * 4 / 3, _inputs_of_stages(network, x, t)
    half = 2 if recipe.training.precision == "bf16" else 1
    moments = 2 if recipe.training.optimizer == "adamw" else 0  # Adafactor keeps sums of rows and columns
    return Cost(
        parameters=parameters,
        flops=flops,
        state_bytes=4 * parameters * (2 + moments + len(recipe.training.ema)),
        activation_bytes=activations // half + 4 * out.numel(),
        images=recipe.training.steps * recipe.training.batch,
    )


def _forward(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The network, and the captions where it reads some; of a frozen encoder's states there are ``STATES``, of a
    frozen tower's ``TOWER``."""
    config = network.config
    text, language = (getattr(config, name, None) for name in ("text", "language"))
    if language is not None:
        states = torch.zeros(len(x), STATES, language.width, device=x.device)
        return network(x, t, network.language(states, torch.ones(len(x), STATES, dtype=torch.bool, device=x.device)))
    if text is None:
        lent = config.token_width if getattr(config, "transformers", False) else None
        if lent is None:
            return network(x, t)
        places = 1 if config.class_tokens else TOWER
        return network(x, t, Condition(tokens=torch.zeros(len(x), places, lent, device=x.device)))
    vector, sequence = network.text(torch.zeros(len(x), text.context, dtype=torch.long, device=x.device))
    return network(x, t, Condition(vector=vector, tokens=None if text.pooled else sequence))


def _inputs_of_stages(network: nn.Module, x, t) -> int:
    kept = []
    hooks = [
        m.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].numel() * 4))
        for m in network.modules()
        if isinstance(m, Stage)
    ]
    _forward(network, x, t)
    for hook in hooks:
        hook.remove()
    return sum(kept)


@checked
def images_per_second(recipe, most: Count, steps: Count = 3) -> tuple[float, int] | None:
    """Median rate of real training steps on this machine's first device, and the batch it was measured with.

    Args:
        recipe: What to train.
        most: Largest batch to try.
        steps: Timed steps; one more goes before them.

    Returns:
        None when not even one image fits, or it would take a CPU too long.
    """
    device, plan, counted = (
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        recipe.training,
        cost(recipe),
    )
    room = _free_memory(device) * 0.8 - counted.state_bytes
    batch = min(most, int(room / counted.activation_bytes))
    if batch < 1 or (device.type == "cpu" and counted.flops > CPU_IMAGE):
        return None
    if device.type == "cpu":
        batch = max(1, min(batch, int(CPU_STEP / counted.flops)))
    network = recipe.build().network.to(device, memory_format=torch.channels_last)
    if plan.compile:
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.lr, fused=True)
    ema, seconds = EMA(network, plan.ema), []
    x = torch.rand(batch, *network.config.in_shape, device=device)  # in the range of codes, where these enter
    t = torch.rand(batch, device=device) * 1000
    for step in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        with autocast(plan.precision, device):
            loss = _forward(network, x, t).float().square().mean()
        loss.backward()
        optimizer.step()
        ema.update(network, step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return batch / sorted(seconds[1:])[steps // 2], batch


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
