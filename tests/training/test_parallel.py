"""Two real processes, as torchrun starts them, train to the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidiff.pmi import DIRECTIONS
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train

HERE = Path(__file__).parent
TINY, CLIP = str(HERE / "tiny.yaml"), str(HERE / "tiny-clip.yaml")
COMMON = ["training.steps=4", "training.checkpoint_every=2"]
ONE = {"one": (TINY, ["system.level_sampler=importance"])} | {
    f"clip-{d}": (CLIP, [f"system.directions={d}"]) for d in DIRECTIONS
}
TWO = {  # the run of one process that each should equal, and what else it is told
    "ddp": ("one", []),
    "accumulated": ("one", ["training.accumulate=2"]),
    "fsdp": ("one", ["training.sharding=full"]),
    "clip-fsdp": ("clip-both", ["training.sharding=full"]),
} | {f"clip-ddp-{d}": (f"clip-{d}", []) for d in DIRECTIONS}
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.loop import train
assert Accelerator(cpu=True).num_processes == 2
folder, ways = Path(sys.argv[1]), json.loads(sys.argv[2])
for name, (recipe, changes) in ways.items():
    train(load_recipe(recipe, changes), Recipe.build, folder / name, cpu=True, quiet=True)
    Accelerator().wait_for_everyone()
    if Accelerator().is_main_process:  # and once more from the middle
        (folder / name / "last.safetensors").write_bytes((folder / name / "previous.safetensors").read_bytes())
        (folder / name / "previous.safetensors").unlink()
    Accelerator().wait_for_everyone()
    train(load_recipe(recipe, changes), Recipe.build, folder / name, cpu=True, quiet=True)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "two.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = {name: (ONE[one][0], COMMON + ONE[one][1] + changes) for name, (one, changes) in TWO.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [*command, folder / "two.py", folder, json.dumps(ways)], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for name, (recipe, changes) in ONE.items():
        train(load_recipe(recipe, COMMON + changes), Recipe.build, folder / name, cpu=True, quiet=True)
    return folder


def assert_equal_runs(one: Path, other: Path):
    """The same weights, averages, moments and losses of times, up to the order of sums."""
    one, _ = load_checkpoint(one / "last.safetensors")
    other, _ = load_checkpoint(other / "last.safetensors")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("way", TWO)
def test_two_processes_end_with_the_weights_of_one(runs, way):
    _, meta = load_checkpoint(runs / way / "last.safetensors")
    assert meta["device"].startswith("2 x cpu") and meta["step"] == 4
    assert_equal_runs(runs / TWO[way][0], runs / way)


def apart(recipe):
    """A CLIP whose pairs see only those of their own half, like those of two processes that do not gather."""
    system = recipe.build()
    whole = system.loss

    def halves(batch, generators):
        n = len(generators) // 2
        cut = [({name: column[half] for name, column in batch.items()}, half) for half in (slice(n), slice(n, None))]
        parts = [whole(part, generators[half]) for part, half in cut]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    system.loss = halves
    return system


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_clip_that_lacks_the_other_half_as_negatives_ends_elsewhere(runs, tmp_path, directions):
    recipe = load_recipe(CLIP, [*COMMON, f"system.directions={directions}"])
    train(recipe, apart, tmp_path, cpu=True, quiet=True)
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_runs(runs / f"clip-{directions}", tmp_path)
