"""Which cells an unsolved answer reaches: by hand, and by running notebooks with and without the cells left out."""

from __future__ import annotations

import contextlib
import io

import pytest

from tools.reach import Block, to_run

ANSWER = Block("def half(x):\n    raise NotImplementedError", ("exercise", "ex:a", "name:half"))
CHECK = Block('check("a", half)', ("check", "ex:a"))


@pytest.mark.parametrize(
    "before, after, runs",
    [
        (["x = 1"], ["y = x"], []),
        (["x = 1"], ["y = half(x)"], [0, 1]),
        (["x = 1"], ["y = half(3)", "z = y + 1", "w = x"], [1, 2]),
        (["import math\nx = math.pi", "y = x"], ["z = half(y)"], [0, 1, 2]),
        ([], ["y = half(3)", "y = 4", "z = y"], [0]),  # y is bound to something else
        ([], ["y = half(3)", "y, z = 4, y", "w = y", "v = z"], [0, 1, 2, 3]),  # a statement is not taken apart
        ([], ["y = [half(3)]", "if z:\n    y = 4", "w = y"], [0, 1, 2]),  # it may still be the old one
        ([], ["y = half(3)", "for y in range(3):\n    print(y)", "w = y"], [0]),
        ([], ["y = half(3)", "for _ in range(3):\n    z = y", "w = z"], [0, 1, 2]),
        ([], ["try:\n    y = half(3)\nexcept NotImplementedError:\n    y = 0", "z = y"], [0, 1]),
        (["x = [1]", "x.append(2)", "y = 1"], ["half(x)"], [0, 1, 3]),
        (["x = [1]", "x[0] = 2", "x = [3]", "x += [4]"], ["half(x)"], [2, 3, 4]),
        (["x = [1]", "x[0], y = 2, 3", "print(x)"], ["half(x)"], [0, 1, 3]),
        (["x = net()", "fit(x, steps=3)", "shown = draw(x)"], ["half(x)"], [0, 1, 3]),
        (["x = net()", "x.weight.zero_()", "y = x.weight"], ["half(x)"], [0, 1, 3]),
        (["x = net()", "def fit(n):\n    n.weight = 3\n    return 4", "loss = fit(x)"], ["half(x)"], [0, 1, 2, 3]),
        (["x = net()", "def see(n):\n    return n.weight", "y = see(x)"], ["half(x)"], [0, 3]),
        (["generator = new()", "a = randn(3, generator)", "b = generator"], ["half(generator)"], [0, 1, 3]),
        (["c = 2", "def f(x):\n    return half(x) * c"], ["c = 3", "y = f(1)", "z = c"], [0, 1, 2, 3]),
        (["c = 2", "def f(x):\n    return x * c"], ["y = f(1)", "c = half(1)", "z = f(1)"], [0, 1, 3, 4]),
        (["log = []", "def f(x):\n    log.append(x)\n    return 1", "f(3)", "y = 2"], ["half(log)"], [0, 1, 2, 4]),
        (["import torch\ntorch.manual_seed(0)", "x = 1"], [], [0]),
        (["import sys\nif sys:\n    %pip install x", "%%bash\nls", "x = 1"], [], [0, 1]),
        (["from math import pi, e", "print(pi)"], ["half(pi)"], [0, 2]),
        (["print(len(x))"], ["half(len)"], [1]),  # nothing changes a builtin
    ],
)
def test_what_runs(before, after, runs):
    """``runs`` counts the cells without the answer and its check, which always run."""
    blocks = [*map(Block, before), ANSWER, CHECK, *map(Block, after)]
    at = len(before)
    assert to_run(blocks) == sorted([at, at + 1, *(i if i < at else i + 2 for i in runs)])


NOTEBOOK = [
    Block("import math\n\nimport numpy as np"),
    Block("generator = np.random.default_rng(3)\nstate = {'calls': 0}\nnoise = generator.normal(size=4)"),
    Block("def draw(n, generator):\n    state['calls'] += 1\n    return generator.normal(size=n)"),
    Block(
        "def train(net, steps):\n    for _ in range(steps):\n        net['w'] -= 0.1 * net['w']\n    return net['w']"
    ),
    Block("net = {'w': 1.0}\nloss = train(net, 3)\nprint(loss)"),
    Block("x = draw(3, generator)\nprint(x)"),
    Block("def half(x):\n    return x / 2", ("exercise", "name:half")),
    Block("print(half(1.0))", ("check",)),
    Block("rows = [half(v) for v in noise]\nprint(rows, net)"),
    Block("last = draw(2, generator)\ntotal = 0.0"),
    Block("for row in rows:\n    total += row\nprint(total)"),
    Block("x = math.pi\nprint(x)"),
    Block("print(half(x), state, draw(2, generator))"),
    Block("rows = [1, 2]\nprint(sum(rows))"),
    Block("print(rows, last)"),
    Block("shown = {**state, 'total': total}\nprint(shown)"),
]


def run(blocks: list[Block]) -> list[str]:
    """What each cell prints when they run in order."""
    namespace, printed = {}, []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block.source, namespace)
        printed.append(out.getvalue())
    return printed


@pytest.mark.parametrize("answer", ["return x / 2", "return x * 0", "state['calls'] += 5\n    return 3 * x"])
def test_cells_do_the_same_when_the_others_are_left_out(answer):
    """Those that run show what they do in the whole notebook, the others what they do in the solved one."""
    blocks = [Block(b.source.replace("return x / 2", answer), b.tags) for b in NOTEBOOK]
    runs = to_run(blocks)
    solved, whole, part = run(NOTEBOOK), run(blocks), run([blocks[i] for i in runs])
    assert part == [whole[i] for i in runs]
    left_out = [i for i in range(len(blocks)) if i not in runs]
    assert [whole[i] for i in left_out] == [solved[i] for i in left_out]


def test_most_of_that_notebook_is_needed():
    assert [i for i in range(len(NOTEBOOK)) if i not in to_run(NOTEBOOK)] == [13, 14]
