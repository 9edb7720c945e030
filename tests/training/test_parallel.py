"""Two real processes, as torchrun starts them, train to the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minidiff.recipes import load_recipe
from minidiff.systems.zoo import build
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train

HERE = Path(__file__).parent
TINY = str(HERE / "tiny.yaml")
COMMON = ["training.steps=4", "training.checkpoint_every=2", "network.dropout=0", "training.times=importance"]
WAYS = {"ddp": [], "accumulated": ["training.accumulate=2"], "fsdp": ["training.sharding=full"]}
SCRIPT = """
import json, sys
from pathlib import Path
from accelerate import Accelerator
from minidiff.recipes import load_recipe
from minidiff.systems.zoo import build
from minidiff.training.loop import train
assert Accelerator(cpu=True).num_processes == 2
recipe, folder, ways = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
for name, changes in ways.items():
    train(load_recipe(recipe, changes), build, folder / name, cpu=True, quiet=True)
    Accelerator().wait_for_everyone()
    if Accelerator().is_main_process:  # and once more from the middle
        (folder / name / "last.safetensors").write_bytes((folder / name / "previous.safetensors").read_bytes())
        (folder / name / "previous.safetensors").unlink()
    Accelerator().wait_for_everyone()
    train(load_recipe(recipe, changes), build, folder / name, cpu=True, quiet=True)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "two.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ways = json.dumps({name: COMMON + changes for name, changes in WAYS.items()})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(
        [*command, folder / "two.py", TINY, folder, ways], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    train(load_recipe(TINY, COMMON), build, folder / "one", cpu=True, quiet=True)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_end_with_the_weights_of_one(runs, way):
    one, _ = load_checkpoint(runs / "one/last.safetensors")
    two, meta = load_checkpoint(runs / way / "last.safetensors")
    assert meta["device"].startswith("2 x cpu") and meta["step"] == 4
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5)
