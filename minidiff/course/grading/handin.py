"""Which lesson a hand-in is of, and (in the sandboxed process) executing what its answers need.

A lesson samples, plots and measures; grading it must not. So of a notebook only these cells run whole: those tagged
``setup`` or ``exercise`` and, when an editor has lost the tags (Colab), those that define an answer. Of all other cells
only the imports, definitions and assignments run that the answers use, directly or through each other.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import builtins
import inspect
import itertools
import linecache
import re
import symtable
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from minidiff.course.grading.dialect import UNREADABLE, parse, session
from minidiff.course.grading.formats import WHOLE, Block, HandIn, cells_of
from minidiff.course.grading.wire import describe

LIGHT = {"check", "claim", "live"}  # tags of cells that never run whole, but may hold a function that an answer uses
RUN = {"setup", "exercise", WHOLE}  # tags of cells that run from the first to the last line
MUTATORS = {"append", "add", "update", "extend", "insert", "setdefault", "eval", "load_state_dict", "set_default_dtype"}
REORDERING = {"sort", "reverse", "pop", "popitem", "remove", "clear", "discard", "appendleft", "extendleft", "rotate"}
CHOICES = (ast.If, ast.While, ast.Try, ast.Match)  # statements of which a part may not run
PLAIN = (ast.Assign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)  # bind for sure
LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)  # look names up later


def detect_lesson(handin: HandIn, path: Path, names: dict[str, dict[str, str]]) -> str:
    """The lesson a hand-in belongs to: by metadata, exercise ids, file name or the answers it defines, in this order.

    Args:
        names: lesson -> {exercise id: name of the answer}.

    Raises:
        ValueError: nothing, or two lessons equally well, fits.
    """
    if handin.lesson in names:
        return handin.lesson
    source = "\n".join(b.source for b in handin.blocks)
    tags = {tag.removeprefix("ex:") for b in handin.blocks for tag in b.tags}
    ids = tags | set(re.findall(r"\bcheck\(\s*[\"']([\w-]{1,80})[\"']", source))
    defined = set(re.findall(r"^(?:def |class )?(\w{1,80})(?=\s*[(=:])", source, re.M))
    by_name = {lesson: int(re.sub(r"^\d+_", "", lesson) in path.stem) for lesson in names}
    by_ids = {lesson: len(ids & set(answers)) for lesson, answers in names.items()}
    by_answers = {lesson: len(defined & set(answers.values())) for lesson, answers in names.items()}
    for score in (by_ids, by_name, by_answers):
        best = [lesson for lesson in names if score[lesson] == max(score.values()) > 0]
        if len(best) == 1:
            return best[0]
    known = ", ".join(names) or "none"
    raise ValueError(f"cannot tell which lesson this is (known: {known}); put the lesson's name in the file name")


@dataclass
class _Statement:
    """A top-level statement: the names it binds and the names it looks up; whether it could define anything.

    Attributes:
        anew: of the names it binds, those that it surely binds anew.
        changes: those that it changes in place.
        reads: of the names it looks up, those that it did not bind before, or may look up later: in a function.
    """

    node: ast.stmt
    binds: set[str]
    anew: set[str]
    changes: set[str]
    needs: set[str]
    reads: set[str]
    later: bool  # whether it defines something that looks names up later

    @property
    def always(self) -> bool:
        """Whether it could define anything: a star, or a file that another cell imports."""
        star = isinstance(self.node, ast.ImportFrom) and any(a.name == "*" for a in self.node.names)
        return star or bool(self.needs & {"__write_file__", "__read_file__"})

    @property
    def guarded(self) -> bool:
        """Whether it is ``if __name__ == "__main__":``, which shows or trains, and seldom defines an answer."""
        return isinstance(self.node, ast.If) and ast.unparse(self.node.test) == "__name__ == '__main__'"


@dataclass
class _Cell:
    statements: list[_Statement]
    whole: bool
    file: str  # what tracebacks call it
    run: set[int] = field(default_factory=set)  # indices of the statements to run


def names_of(node: ast.stmt) -> tuple[set[str], set[str]]:
    """The global names that a statement binds (or changes in place), and those that it looks up."""
    table = symtable.symtable(ast.unparse(node), "handin", "exec")
    binds, needs = set(), set()
    for symbol in table.get_symbols():
        if symbol.is_assigned() or symbol.is_imported():
            binds.add(symbol.get_name())
        if symbol.is_referenced():
            needs.add(symbol.get_name())
    scopes = list(table.get_children())
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        needs |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    return binds | mutated(node), needs


def mutated(node: ast.stmt) -> set[str]:
    """Names of the objects that a statement changes in place: ``x[0] = 1``, ``x.a += 1``, ``x.append(1)``."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = [target for target in node.targets if not isinstance(target, ast.Name)]
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.AnnAssign) and not node.simple):
        targets = [node.target]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        call = node.value.func
        targets = [call.value] if isinstance(call, ast.Attribute) and call.attr in MUTATORS else []
    return set().union(*map(_root, targets))


def changed(node: ast.AST) -> set[str]:
    """As :func:`mutated`, also by other methods (``x.sort()``, ``x.mul_(2)``), and inside loops and other blocks."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return set()
    found = mutated(node) if isinstance(node, ast.stmt) else set()
    call = node.value.func if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
    if isinstance(call, ast.Attribute) and (call.attr in REORDERING or call.attr.endswith("_")):
        found |= _root(call)
    if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
        found |= _root(node)
    return found.union(*map(changed, ast.iter_child_nodes(node)))


def exposed(body: Iterable[ast.stmt], bound: set[str]) -> set[str]:
    """The names that statements read before they bind them; what they surely bind is added to ``bound``."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.For):
            found |= _read(node.iter) - bound
            found |= exposed(node.body + node.orelse, bound | _bound(node.target))
        elif isinstance(node, ast.With):
            for item in node.items:
                found |= _read(item.context_expr) - bound
                bound |= _bound(item.optional_vars) if item.optional_vars else set()
            found |= exposed(node.body, bound)
        elif isinstance(node, ast.If | ast.While):
            found |= _read(node.test) - bound
            found |= exposed(node.body, set(bound)) | exposed(node.orelse, set(bound))
        else:
            binds, needs = names_of(node)
            inside = mutated(node)
            found |= (needs | inside) - bound
            bound |= set() if isinstance(node, CHOICES) else binds - inside
    return found


def _read(node: ast.expr) -> set[str]:
    return names_of(ast.Expr(node))[1]


def _bound(target: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _root(target: ast.expr) -> set[str]:
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return {target.id} if isinstance(target, ast.Name) else set()


def _bound_by_pattern(block: Block) -> set[str]:
    """What a cell that does not parse would probably have defined."""
    tagged = {tag.removeprefix("name:") for tag in block.tags if tag.startswith("name:")}
    return tagged | set(re.findall(r"^(?:def |class )?(\w+)(?=\s*[(=:])", block.source, re.M))


def _statement(node: ast.stmt) -> _Statement:
    binds, needs = names_of(node)
    changes, later = changed(node), any(isinstance(part, LATER) for part in ast.walk(node))
    anew = binds - changes if isinstance(node, PLAIN) else set()
    reads = needs if later else exposed([node], set())
    return _Statement(node, binds | changes, anew, changes, needs, reads, later)


def _drop_stubs(cells: list[_Cell], answers: set[str]) -> None:
    """Leave out the stub of an answer that stands elsewhere too: who wrote it in a cell above did not mean the stub."""
    every = [s for cell in cells for s in cell.statements if not _is_stub(s.node)]
    made = lambda s: s.anew if isinstance(s.node, ast.FunctionDef | ast.ClassDef) else s.anew - s.needs
    given = {name for s in every for name in made(s) & answers}
    for cell in cells:
        cell.statements = [s for s in cell.statements if not (_is_stub(s.node) and s.binds & given)]


def _is_stub(node: ast.stmt) -> bool:
    """``answer = ...``, or a function that does nothing but raise ``NotAttempted``."""
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant) and node.value.value is ...
    if not isinstance(node, ast.FunctionDef):
        return False
    raised = node.body[-1].exc if isinstance(node.body[-1], ast.Raise) else None
    raised = raised.func if isinstance(raised, ast.Call) else raised
    alone = len(node.body) == 1 + (ast.get_docstring(node, clean=False) is not None)
    return alone and raised is not None and ast.unparse(raised).rpartition(".")[2] == "NotAttempted"


def _select(cells: list[_Cell], answers: set[str]) -> None:
    """Mark what to run: whole cells, and everything they need, backwards through the names.

    A name that a cell binds anew before it looks it up comes from nowhere else; else an answer that calls something
    ``generator`` would run all cells that do. What changes it in place runs all the same: it may have another name.
    """
    for cell in cells:
        cell.run = {i for i, s in enumerate(cell.statements) if (cell.whole and not s.guarded) or s.always}
    needed, used = set(answers), set()  # names that come from any cell, and those that a cell has of its own
    grown = True
    while grown:
        before = sum(len(cell.run) for cell in cells)
        for cell in cells:
            bound: set[str] = set()
            for statement in (cell.statements[i] for i in sorted(cell.run)):
                used |= statement.needs
                needed |= statement.reads if statement.later else statement.reads - bound
                bound |= statement.anew
        for cell in cells:
            cell.run |= {i for i, s in enumerate(cell.statements) if s.binds & needed or s.changes & used}
        grown = sum(len(cell.run) for cell in cells) > before


def execute(blocks: Iterable[Block], answers: Iterable[str]) -> tuple[dict, dict[str, list[str]]]:
    """Run what the answers need, in order.

    A failing statement costs what it defines, nothing else: what it lacks may be what a sandbox lacks.

    Args:
        answers: names of the objects that answer exercises.

    Returns:
        The namespace, and for every name whose definition failed the exception as ``[type, text, line]``.
    """
    answers, errors = set(answers), {}
    cells = []
    for block in itertools.chain.from_iterable(map(cells_of, blocks)):
        try:
            statements = [_statement(node) for node in parse(block.source).body]
        except UNREADABLE as error:
            errors.update(dict.fromkeys(_bound_by_pattern(block), describe(error)))
            continue
        whole = bool(RUN & set(block.tags)) or any(s.binds & answers for s in statements)
        whole = whole and not LIGHT & set(block.tags)
        cells.append(_Cell(statements, whole, f"<cell {len(cells) + 1} of the hand-in>"))
        linecache.cache[cells[-1].file] = (len(block.source), None, block.source.splitlines(True), cells[-1].file)
    _drop_stubs(cells, answers)
    _select(cells, answers)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # dataclasses look their module up
    module.__dict__.update(**(names := session()), __builtins__=builtins)
    # ``from __future__ import annotations`` in a first cell holds for the notebook, so it is compiled in everywhere
    future = any(getattr(s.node, "module", "") == "__future__" for cell in cells for s in cell.statements)
    flags = __future__.annotations.compiler_flag if future else 0
    for cell in cells:
        for i in sorted(cell.run):
            statement = cell.statements[i]
            failed = _run(statement.node, module.__dict__, flags, cell.file)
            module.__dict__["get_ipython"] = names["get_ipython"]  # the one that IPython has gives None here
            if failed is not None:
                errors.update(dict.fromkeys(statement.binds, failed))
    return module.__dict__, {name: error for name, error in errors.items() if name not in module.__dict__}


def _run(node: ast.stmt, namespace: dict, flags: int, file: str) -> list[str] | None:
    code = ast.fix_missing_locations(ast.Module([node], []))
    try:
        compiled = compile(code, file, "exec", flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        waiting = eval(compiled, namespace)
        if compiled.co_flags & inspect.CO_COROUTINE:
            asyncio.run(waiting)
    except BaseException as error:  # also SystemExit: it ends this statement, nothing else
        return describe(error)
    return None
