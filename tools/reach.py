"""Which cells of a student notebook an unsolved answer can reach: the others do what they do in the solved notebook.

A cell is reached when it is an answer or a check, or when it reads what a reached statement binds or changes. Cells are
followed in their order, so a name is free again once it is bound to something else. With the reached cells run those
that bind, or may change, what they read.

What a statement may change: what it assigns into, what it calls a method of or hands to a call whose value it throws
away, what a method that ends in ``_`` belongs to, what it hands to a function of the notebook that changes an argument,
and a random generator wherever it is handed to.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from minidiff.course.grading.dialect import parse
from minidiff.course.grading.formats import Block
from minidiff.course.grading.handin import CHOICES, MUTATORS, exposed, mutated, names_of

ROOTS = {"exercise", "check"}  # tags of the cells that an unsolved answer reaches first
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
READERS = {"print", "display", "check", "claim", "finish", "glue", "table", "frames", "live"}  # change nothing
SETTERS = ("seed", "manual_seed", "set_", "use_")  # calls so named, as statements, change what no name stands for


@dataclass
class Names:
    """What a statement, or a cell, does to names.

    Attributes:
        reads: what it needs to have been bound before.
        binds: what it surely binds anew.
        changes: what it may change, or may bind anew.
        alters: whether it defines a function that may change what it is given.
    """

    reads: set[str] = field(default_factory=set)
    binds: set[str] = field(default_factory=set)
    changes: set[str] = field(default_factory=set)
    alters: bool = False

    def then(self, later: Names) -> None:
        """Add what comes after."""
        self.reads |= later.reads - self.binds
        self.binds |= later.binds
        self.changes |= later.changes


def to_run(blocks: Sequence[Block]) -> list[int]:
    """The places of the cells that have to run to see that unsolved answers do no harm, in order."""
    reached, cells = follow(blocks)
    run = reached | {i for i, block in enumerate(blocks) if _sets(block)}
    left = sorted(run)
    while left:
        last = left.pop()
        more = {i for name in cells[last].reads for i in _sources(name, cells[:last])} - run
        run |= more
        left += more
    return sorted(run)


def follow(blocks: Sequence[Block]) -> tuple[set[int], list[Names]]:
    """The cells that answers reach; and what each cell does to names, functions doing what they do where called."""
    tainted: set[str] = set()
    functions: dict[str, Names] = {}
    unchanging = set(dir(builtins)) | {name for block in blocks for name in _imported(block)}
    reached, cells = set(), []
    for i, block in enumerate(blocks):
        cells.append(Names())
        root = bool(ROOTS & set(block.tags))
        for node in parse(block.source).body:
            step = _names(node)
            used = _with_functions(step, functions)
            used.changes -= unchanging | functions.keys()
            if root or used.reads & tainted:
                reached.add(i)
                tainted |= used.binds | used.changes
            else:
                tainted -= used.binds
            for name in step.binds | step.changes:
                functions.pop(name, None)
            if any(isinstance(part, FUNCTIONS) for part in ast.walk(node)):
                functions |= dict.fromkeys(step.binds, step)
            cells[i].then(used)
    return reached | {i for i, block in enumerate(blocks) if ROOTS & set(block.tags)}, cells


def _sources(name: str, before: Sequence[Names]) -> Iterator[int]:
    """The cells that bind a name and those that may change it from then on, backwards."""
    for i in range(len(before) - 1, -1, -1):
        if name in before[i].binds | before[i].changes:
            yield i
        if name in before[i].binds:
            return


def _with_functions(step: Names, functions: dict[str, Names]) -> Names:
    """The same statement, which also reads and changes what the functions do that it may call."""
    used = Names(set(step.reads), set(step.binds), set(step.changes))
    left, seen = list(step.reads), set(step.reads)
    while left:
        if called := functions.get(left.pop()):
            used.reads |= called.reads
            used.changes |= called.changes | (step.reads if called.alters else set())
            left += called.reads - seen
            seen |= called.reads
    return used


def _names(node: ast.stmt) -> Names:
    binds, needs = names_of(node)
    changes = {name for part in ast.walk(node) for name in _changed(part)}
    sure = set() if isinstance(node, (*CHOICES, ast.AugAssign)) else binds - mutated(node)
    defined = [part for part in ast.walk(node) if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    alters = any(_parameters(each) & {n for part in ast.walk(each) for n in _changed(part)} for each in defined)
    return Names(exposed([node], set()), sure, changes & (binds | needs) | (binds - sure), alters)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {part.arg for part in ast.walk(function.args) if isinstance(part, ast.arg)}


def _changed(part: ast.AST) -> Iterator[str]:
    """Names of the objects that one piece of a statement may change in place."""
    if isinstance(part, ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
        yield _root(part)
    elif isinstance(part, ast.AugAssign):
        yield _root(part.target)
    elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call) and _root(part.value.func) not in READERS:
        if isinstance(part.value.func, ast.Attribute):
            yield _root(part.value.func)
        given = [*part.value.args, *part.value.keywords]
        yield from (n.id for each in given for n in ast.walk(each) if isinstance(n, ast.Name))
    elif isinstance(part, ast.Call):
        if isinstance(part.func, ast.Attribute) and (part.func.attr in MUTATORS or part.func.attr.endswith("_")):
            yield _root(part.func)
        given = [*part.args, *(keyword.value for keyword in part.keywords)]
        yield from (each.id for each in given if isinstance(each, ast.Name) and "generator" in each.id)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _imported(block: Block) -> Iterator[str]:
    for node in ast.walk(parse(block.source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def _sets(block: Block) -> bool:
    """Whether a cell has a magic, or sets something that no name stands for, like ``torch.manual_seed(0)``."""
    try:
        nodes = ast.parse(block.source).body
    except SyntaxError:
        return True
    called = [n.value.func for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return any(ast.unparse(function).rpartition(".")[2].startswith(SETTERS) for function in called)
