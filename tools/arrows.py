"""Which module of the package imports which: dependencies point downward only, and never in a circle.

``python -m tools.arrows`` prints every module with those that it imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tools.lessons import ROOT

PACKAGE = "minidiff"
# From top to bottom. A module imports what stands below its own line, and on that line what does not import it.
# The package's own `__init__` offers what is below it to command line, course and user; what is below it never asks it.
LAYERS = (
    ("cli", "__main__"),
    ("course",),
    ("__init__",),
    ("metrics", "plots", "bench", "doctor"),
    ("store", "pretrained", "stable", "diffusers_names"),
    ("recipes",),
    ("systems",),
    ("training",),
    ("data", "pictures"),
    ("models",),
    ("guidance", "sampler", "inversion", "likelihood", "cross_entropy", "smc", "pmi", "exact", "choosing"),
    ("condition", "denoiser", "process"),
    ("prediction",),
    ("schedule", "random"),
    ("settings",),
    ("files", "words", "download", "pixels"),
    ("arguments",),
)
HEIGHT = {name: -line for line, names in enumerate(LAYERS) for name in names}
OUTSIDERS = {"sphinx", "myst_nb", "pytest"}  # a module may not need them to be imported

Arrows = dict[str, dict[str, int]]  # module -> modules that it imports, each with a line where it does


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the imports of the package below ``root``, as lines that begin with file and line."""
    drawn, files = arrows(root), modules(root)
    found = [
        f"{path}:1: {name} has no layer in {__name__}" for name, path in files.items() if _part(name) not in HEIGHT
    ]
    level: dict[str, list[str]] = {name: [] for name in drawn}  # a circle has an arrow upward, or lies in one layer
    for name, targets in drawn.items():
        for target, line in targets.items():
            if _height(target) > _height(name):
                found.append(f"{files[name]}:{line}: {name} imports {target}, which stands above it")
            elif _height(target) == _height(name):
                level[name].append(target)
    for name, target, circle in _circles(level):
        found.append(f"{files[name]}:{drawn[name][target]}: a circle of imports: {circle}")
    return [*found, *_outsiders(files)]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of the package by their dotted names."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def arrows(root: Path = ROOT) -> Arrows:
    """The imports of every module, also those inside functions and those for type checkers only."""
    files = modules(root)
    drawn: Arrows = {name: {} for name in files}
    for name, path in files.items():
        for line, target in _imported(_tree(path), name, path.name == "__init__.py"):
            while target and target not in files:  # a name in a module rather than a module
                target = target.rpartition(".")[0]
            if target and target != name:
                drawn[name].setdefault(target, line)
    return drawn


def text(drawn: Mapping[str, Mapping[str, int]]) -> str:
    """The arrows, one module a line."""
    return "\n".join(f"{name} -> {', '.join(sorted(targets)) or 'nothing'}" for name, targets in drawn.items())


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported; ``from a import b`` is ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _part(module: str) -> str:
    """The part of the package that a module belongs to: what LAYERS orders."""
    return (module.split(".") + ["__init__"])[1]


def _height(module: str) -> float:
    return HEIGHT.get(_part(module), float("-inf"))


def _circles(drawn: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str, str]]:
    """Circles, each with its first arrow, which is then taken away before the next is looked for."""
    left = {name: sorted(targets) for name, targets in drawn.items()}
    while True:
        try:
            TopologicalSorter(left).prepare()
            return
        except CycleError as error:
            circle = error.args[1][:0:-1]  # backwards, as the sorter has it, and without the repeated end
            start = circle.index(min(circle))
            circle = [*circle[start:], *circle[: start + 1]]
            yield circle[0], circle[1], " -> ".join(circle)
            left[circle[0]].remove(circle[1])


def _outsiders(files: Mapping[str, Path]) -> Iterator[str]:
    """Imports, outside functions, of packages that render or test the course."""
    for name, path in files.items():
        for statement in _outside_functions(_tree(path)):
            for line, target in _imported(statement, name, path.name == "__init__.py"):
                if (top := target.partition(".")[0]) in OUTSIDERS:
                    yield f"{path}:{line}: {name} needs {top} to be imported; import it in the function that uses it"


def _outside_functions(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _outside_functions(child)


if __name__ == "__main__":
    print(text(arrows()))
