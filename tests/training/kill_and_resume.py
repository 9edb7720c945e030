"""Train in a child process that is killed with SIGKILL at random moments until it gets to its end.

Usage: kill_and_resume.py RECIPE FOLDER KILLS. Prints the number of kills that hit a running child. Forking keeps the
imports, so that the kills fall into training and writing rather than into start-up.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401
import torch
import torch._dynamo  # an optimiser imports it when it is made
import torch.utils.tensorboard

from minidiff.data.digits import digits
from minidiff.recipes import Recipe, load_recipe
from minidiff.training.loop import train

recipe, folder, kills = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
digits("train")  # read once, before the forks
last = folder / "last.safetensors"
moments, hits = random.Random(0), 0


def written() -> float:
    return last.stat().st_mtime_ns if last.exists() else 0


while True:
    before, child = written(), os.fork()
    if not child:
        train(recipe, Recipe.build, folder, cpu=True, quiet=True)
        os._exit(0)
    if hits < kills:
        while written() == before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)  # the child has to write a checkpoint of its own first
        time.sleep(moments.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        hits += 1
    else:
        break
print(hits)
sys.exit(os.waitstatus_to_exitcode(status))
