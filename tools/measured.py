"""Whether the numbers of a claim were measured: read from the lesson's source, without running it.

A number is measured when it reaches, through the names of the notebook, a call that computes something. What is typed,
and arithmetic on what is typed, is refused: a literal, a list of them, a function that returns one. What this cannot
see is a call that computes something else, or a result that is multiplied by zero.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tools.lessons import Lesson

MODULES = {"math", "itertools", "functools", "operator", "statistics"}  # their functions compute only on what they get
PASSING = {"tensor", "as_tensor", "array", "asarray", "float64", "float32", "full", "zeros", "ones", "arange", "eye",
           "zeros_like", "ones_like", "full_like", "partial", "Path", "deepcopy", "Interval", "Generator"}  # fmt: skip
NUMBERS = {"value", "interval", "negative", "control"}  # arguments of claim() that are measured
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Place = tuple[int, int, int]  # of a cell in the lesson, and line and column in the cell


@dataclass
class Scope:
    """What the names of a notebook, a function or a comprehension stand for.

    Attributes:
        events: place, name, whether it is bound anew (else it is changed), and the syntax tree that says to what; of
            an argument there is none.
        outer: the scope around it.
        ends: in the notebook, the place after which nothing counts. Inside functions the order does not count.
    """

    events: list[tuple[Place, str, bool, ast.AST | None]] = field(default_factory=list)
    outer: Scope | None = None
    ends: Place | None = None

    def find(self, name: str) -> list[tuple[ast.AST | None, Scope]]:
        """What a name may stand for, and the scope to read that in; nothing for what is bound nowhere."""
        found = []
        for place, bound, anew, node in reversed(self.events):
            if bound == name and (self.ends is None or place < self.ends):
                at_once = self.ends is not None and not isinstance(node, FUNCTIONS)
                found.append((node, Scope(self.events, None, place) if at_once else self))
                if anew and self.ends is not None:
                    break
        return found or (self.outer.find(name) if self.outer else [])


def unmeasured(lesson: Lesson) -> Iterator[str]:
    """The typed numbers of claims: value, interval and every control."""
    events = []
    for number, cell in enumerate(lesson.code):
        events += sorted(_events(cell.tree.body, number), key=lambda event: event[0])
        for call in cell.calls("claim"):
            notebook = Scope(events, None, (number, call.lineno, call.col_offset))
            given = dict(zip(("id", "statement", "value"), call.args, strict=False))
            given |= {k.arg: k.value for k in call.keywords if k.arg}
            here = f"{lesson.path}:{cell.line + call.lineno - 1}: claim {ast.unparse(given['id'])}"
            for name in sorted(NUMBERS & given.keys()):
                for part, scope in _parts(given[name], notebook):
                    if not (_none(part) or computed(part, scope)):
                        yield f"{here}: {name} {ast.unparse(part)} is typed, not measured by a call"


def _none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _parts(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """The single numbers of an argument, a dictionary's or a tuple's, also where a name stands for one."""
    found = scope.find(node.id) if isinstance(node, ast.Name) else []
    if len(found) == 1 and isinstance(found[0][0], ast.Dict | ast.Tuple):
        node, scope = found[0]
    pending = [node]
    while pending:
        part = pending.pop(0)
        if isinstance(part, ast.Dict | ast.Tuple):
            pending[:0] = part.values if isinstance(part, ast.Dict) else part.elts
        else:
            yield part, scope


def computed(node: ast.AST | None, scope: Scope, seen: frozenset[int] = frozenset()) -> bool:
    """Whether an expression, or what a function gives, reaches a call that computes something."""
    if node is None or id(node) in seen:
        return False
    seen |= {id(node)}
    match node:
        case ast.Name():
            return any(computed(each, where, seen) for each, where in scope.find(node.id) if not _imported(each))
        case ast.Call():
            return any(computed(arg, scope, seen) for arg in _arguments(node)) or _computes(node.func, scope, seen)
        case ast.Attribute() | ast.Subscript() | ast.Starred() | ast.NamedExpr():
            return computed(node.value, scope, seen)
        case ast.Lambda():
            return computed(node.body, _inside(node, scope), seen)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            inside = _inside(node, scope)
            given = [part.value for part in _own(node.body) if isinstance(part, ast.Return | ast.Yield | ast.YieldFrom)]
            return any(computed(value, inside, seen) for value in given)
        case ast.ClassDef():
            return True
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            events = [((0, 0, 0), name, True, g.iter) for g in node.generators for name in _names(g.target)]
            inside = Scope(events, scope)
            made = (node.key, node.value) if isinstance(node, ast.DictComp) else (node.elt,)
            return any(computed(part, inside, seen) for part in made)
        case _:
            return any(computed(part, scope, seen) for part in ast.iter_child_nodes(node))


def _computes(function: ast.expr, scope: Scope, seen: frozenset[int]) -> bool:
    """Whether a call of it computes something whatever it is handed."""
    name = ast.unparse(function).split(".")[-1]
    root = function
    while isinstance(root, ast.Attribute):
        root = root.value
    if not isinstance(root, ast.Name):
        return computed(root, scope, seen)
    for each, where in scope.find(root.id):
        if _imported(each):
            module = each.module or "" if isinstance(each, ast.ImportFrom) else each.names[0].name
            if module.split(".")[0] not in MODULES and name not in PASSING:
                return True
        elif each is None or computed(each, where, seen):  # what a function calls of its own arguments
            return True
    return False


def _imported(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _arguments(call: ast.Call) -> Iterator[ast.expr]:
    yield from call.args
    yield from (k.value for k in call.keywords)


def _inside(node: ast.AST, outer: Scope) -> Scope:
    """The scope of a function: its arguments, which are what they are by default, and what its body binds."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    events = [((0, 0, 0), a.arg, True, None) for a in arguments if a]
    body = [] if isinstance(node, ast.Lambda) else node.body
    return Scope([*events, *_events(body, 0)], outer)


def _own(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes of a body without those of the functions that it defines."""
    for node in body:
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield from _own(ast.iter_child_nodes(node))


def _events(body: Iterable[ast.AST], number: int) -> Iterator[tuple[Place, str, bool, ast.AST | None]]:
    """What statements bind and change, with the expression that says to what."""
    loops: dict[str, set[str]] = {}  # what a loop's variable may be a part of
    for node in _own(body):
        place = (number, getattr(node, "lineno", 0), getattr(node, "col_offset", 0))
        match node:
            case ast.Assign():
                for target in node.targets:
                    yield from _assigned(place, target, node.value)
            case ast.AnnAssign() | ast.NamedExpr():
                yield from _assigned(place, node.target, node.value)
            case ast.AugAssign():
                yield from ((place, name, False, node.value) for name in _names(node.target))
            case ast.For():
                parts = {part.id for part in ast.walk(node.iter) if isinstance(part, ast.Name)}
                loops |= dict.fromkeys(_names(node.target), parts)
                yield from _assigned(place, node.target, node.iter)
            case ast.withitem(optional_vars=ast.AST()):
                yield from _assigned((number, node.context_expr.lineno, 0), node.optional_vars, node.context_expr)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield place, node.name, True, node
            case ast.Import() | ast.ImportFrom():
                yield from ((place, (a.asname or a.name).split(".")[0], True, node) for a in node.names)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=owner))):
                for name in _names(owner):
                    for changed in (name, *loops.get(name, ())):
                        yield from ((place, changed, False, each) for each in _arguments(node.value))


def _assigned(place: Place, target: ast.expr, value: ast.AST):
    """The events of one assignment; of a tuple on both sides, each to its own."""
    if isinstance(target, ast.Tuple | ast.List):
        paired = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts)
        paired = paired and not any(isinstance(e, ast.Starred) for e in [*target.elts, *value.elts])
        for i, each in enumerate(target.elts):
            yield from _assigned(place, each, value.elts[i] if paired else value)
    else:
        plain = isinstance(target, ast.Name)
        yield from ((place, name, plain, value) for name in _names(target))


def _names(target: ast.expr) -> Iterator[str]:
    """The names that an assignment to a target binds or changes; not those of an index."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Attribute | ast.Subscript | ast.Starred):
        yield from _names(target.value)
    elif isinstance(target, ast.Tuple | ast.List):
        for each in target.elts:
            yield from _names(each)
