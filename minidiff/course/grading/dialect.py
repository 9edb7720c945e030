"""Code as hand-ins have it: IPython's magics and shell lines, also as an exporter writes them, and Colab's modules.

What only an interactive session has does nothing here (shell commands, Colab's drive, most magics); what carries a
learner's code is executed: ``%%writefile``, ``%run``, ``%%time``, ``%time x = f()``, ``await``.
"""

from __future__ import annotations

import ast
import importlib
import re

# cell magics whose cell is another language (or nobody's); the cell of any other is Python
OTHER = ("%%bash", "%%sh", "%%shell", "%%script", "%%system", "%%sx", "%%!", "%%cmd", "%%perl", "%%ruby", "%%R")
OTHER += ("%%html", "%%HTML", "%%javascript", "%%js", "%%latex", "%%markdown", "%%svg", "%%SVG", "%%cython", "%%sql")
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)  # what Python's parser raises
WRITING = ("%%writefile", "%%file")
_NAMES = r"^(\s*[\w.][\w., \[\]()*]*=\s*)"
_TIMED = re.compile(r"^([ \t]*|" + _NAMES[1:] + r")%time\s+(?=[^-\s])")
_ASSIGNED = re.compile(_NAMES + r"[!%].*$")
_RUN = re.compile(r"^([ \t]*)%run\s+(?:-\w+\s+)*[\"']?([^\s\"']+)[\"']?.*$")


def parse(source: str) -> ast.Module:
    """Parse a cell; IPython magics and shell lines do nothing when it is not Python as it stands."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        tree = _parse_interactive(source)
    tree.body = [new for node in tree.body for new in _translated(node)]
    return tree


def _parse_interactive(source: str) -> ast.Module:
    first, _, rest = source.lstrip().partition("\n")
    if not first.startswith("%%"):
        return ast.parse(as_python(source))
    magic, *options = first.split()
    if magic in WRITING:
        if not options:
            return ast.Module([], [])
        mode = "a" if "-a" in options or "--append" in options else "w"
        return ast.parse(f"__write_file__({options[-1]!r}, {rest + chr(10)!r}, {mode!r})")
    return ast.Module([], []) if magic in OTHER else parse("\n" + rest)


def as_python(source: str) -> str:
    """The same number of lines, as Python, if they are not Python as they stand."""
    try:
        ast.parse(source)
    except UNREADABLE:
        lines, continued = [], False
        for line in source.split("\n"):
            plain, ours = ("", True) if continued else _plain(line)
            lines.append(plain)
            continued = ours and line.rstrip().endswith("\\")
        return "\n".join(lines)
    return source


def _plain(line: str) -> tuple[str, bool]:
    """A line as Python, and whether it was something else."""
    if _TIMED.match(line):
        return _TIMED.sub(r"\1", line), False
    if found := _RUN.match(line):
        return f"{found[1]}exec(__read_file__({found[2]!r}))", True
    if _ASSIGNED.match(line):
        return _ASSIGNED.sub(r"\1__nothing__", line), True
    content = line.strip()
    if content.startswith(("%", "!", "?")) or content.endswith("?"):
        return line[: len(line) - len(line.lstrip())] + "pass", True
    return line, False


def _translated(node: ast.stmt) -> list[ast.stmt]:
    """A statement that an exporter or Colab wrote, as what it stands for."""
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        kind, given = call.func.attr, [a.value for a in call.args if isinstance(a, ast.Constant)]
        if kind == "run_cell_magic" and len(given) == 3:
            return parse("%%{} {}\n{}".format(*given)).body
        if kind in ("run_line_magic", "magic") and given[:1] in (["time"], ["run"]):
            return parse(f"%{given[0]} {given[-1]}").body
    if isinstance(node, ast.Import | ast.ImportFrom):
        from_ = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        if all(f"{from_}{alias.name}.".startswith("google.colab.") for alias in node.names):
            names = [alias.asname or (alias.name if from_ else "google") for alias in node.names]
            return ast.parse("".join(f"{name} = __nothing__\n" for name in names if name != "*")).body
    return [node]


class Nothing:
    """Stands for what only an interactive session has: any attribute, call or item of it is nothing again."""

    def __getattr__(self, name: str) -> Nothing:
        if name.startswith("__"):
            raise AttributeError(name)  # what Python asks for by itself is not there
        return self

    def __call__(self, *args, **kwargs) -> Nothing:
        return self

    def __iter__(self):
        return iter(())

    def __len__(self) -> int:
        return 0

    def __str__(self) -> str:
        return ""

    def __format__(self, spec: str) -> str:
        return ""


def write_file(path: str, text: str, mode: str) -> None:
    """``%%writefile``, so that another cell can import it."""
    with open(path, mode, encoding="utf-8") as file:
        file.write(text)
    importlib.invalidate_caches()


def read_file(path: str) -> str:
    """``%run``, of what ``%%writefile`` wrote."""
    with open(path if path.endswith((".py", ".ipy")) else f"{path}.py", encoding="utf-8") as file:
        return as_python(file.read())


def session() -> dict:
    """The names that a notebook has and a module has not."""
    nothing = Nothing()
    return {
        "display": lambda *args, **kwargs: None,
        "get_ipython": lambda: nothing,
        "input": lambda prompt="": "",  # nobody is there to answer
        "__nothing__": nothing,
        "__write_file__": write_file,
        "__read_file__": read_file,
    }
