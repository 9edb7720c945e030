"""The commands that pages, lessons and the help show: each is read by the parser that would read it in a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click

from tools.lessons import ROOT

BLOCK = re.compile(r"^ *```(?:bash|sh|shell|console)\n(.*?)^ *```", re.M | re.S)
INLINE = re.compile(r"`((?:minidiff|make|torchrun|pytest|python)(?: [^`]*)?)`")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]+|\.\.\.")
PROGRAMS = ("minidiff", "make", "torchrun", "python", "pytest")
SYSTEMS = ("classifier", "clip", "upsamplers")  # options that name one


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line and words of each command in the shell blocks of a page, and in its inline code."""
    for match in BLOCK.finditer(text):
        first = 1 + text.count("\n", 0, match.start(1))
        yield from _of_block(match[1], first)
    outside = BLOCK.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in INLINE.finditer(outside):
        words = shlex.split(match[1])
        mentioned = words[0] == "minidiff" and len(words) == 2  # by name alone
        yield 1 + text.count("\n", 0, match.start()), [*words, "--help"] if mentioned else words


def _of_block(block: str, first: int) -> Iterator[tuple[int, list[str]]]:
    joined = re.sub(r"\\\n", lambda _: "\\\0", block)  # a line that goes on keeps its number
    for number, line in enumerate(joined.split("\n"), first):
        lexer = shlex.shlex(line.replace("\\\0", " "), posix=True, punctuation_chars="&|;")
        lexer.whitespace_split, words = True, []
        for word in [*lexer, "&&"]:
            if word in ("&&", "|", ";", "||"):
                if words:
                    yield number, words
                words = []
            elif word != "$":
                words.append(word)


def shown(root: Path = ROOT) -> Iterator[tuple[str, list[str]]]:
    """Place and words of every command on the pages, in the lessons and in the help."""
    for pattern in ("README.md", "CONTRIBUTING.md", "book/**/*.md", "lessons/*.md"):
        for path in sorted(root.glob(pattern)):
            for line, words in commands(path.read_text(encoding="utf-8")):
                yield f"{path}:{line}", words
    for name, command in helped(_main()):
        for words in examples(command.help or ""):
            yield f"the help of {name}", words


def helped(command: click.Command, name: str = "minidiff") -> Iterator[tuple[str, click.Command]]:
    """A command and those below it."""
    yield name, command
    for below, each in getattr(command, "commands", {}).items():
        yield from helped(each, f"{name} {below}")


def examples(text: str) -> Iterator[list[str]]:
    """The commands among the examples of a command's help."""
    lines: list[str] = []
    for line in map(str.strip, text.partition("Examples:")[2].splitlines()):
        if line.startswith(PROGRAMS):
            lines.append(line)
        elif lines and line:  # the line before goes on
            lines[-1] += f" {line}"
    yield from map(shlex.split, lines)


def wrong(words: list[str], root: Path = ROOT) -> str:
    """What is wrong with a command; nothing where it could be run."""
    try:
        return _wrong(words, root)
    except click.ClickException as error:
        return error.format_message()
    except (ValueError, SystemExit) as error:
        return str(error)


def _wrong(words: list[str], root: Path) -> str:
    program, *rest = words
    if program == "make":
        return _make(rest, root)
    if program == "torchrun":
        from torch.distributed.run import get_args_parser

        parser = get_args_parser()
        parser.error = _refuse
        read = parser.parse_args(rest)
        rest = ["-m", read.training_script, *read.training_script_args]
        program = "python"
        if not read.module:
            raise ValueError("torchrun needs -m before minidiff")
    if program == "python":
        return _python(rest, root)
    if program == "minidiff":
        _minidiff(rest)
        return ""
    if program == "pytest":
        files = [word for word in rest if word.startswith("tests/")]
        return "".join(f"there is no {file}" for file in files if not (root / file).exists())
    return f"no program {program!r} is known here"


def _refuse(message: str) -> None:
    raise ValueError(message)


def _make(words: list[str], root: Path) -> str:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, given, value = word.partition("=")
        if given and f"$({name})" not in makefile:
            return f"the Makefile has no variable {name!r}"
        if name == "GATES":
            from tools.run_gates import GATES

            if unknown := set(value.split()) - {gate.name for gate in GATES}:
                return f"no gate {', '.join(sorted(unknown))}"
        if not given and not re.search(rf"^{re.escape(name)}:", makefile, re.M):
            return f"the Makefile has no target {name!r}"
    return ""


def _python(words: list[str], root: Path) -> str:
    if words[:2] == ["-m", "minidiff"]:
        _minidiff(words[2:])
        return ""
    file = words[1].replace(".", "/") + ".py" if words[:1] == ["-m"] else words[0]
    return "" if (root / file).is_file() else f"there is no {file}"


def _main() -> click.Group:
    from minidiff.cli import main

    return main


def _minidiff(words: list[str]) -> None:
    """Read a command of minidiff: options, the values of those that are no files, and names of recipes and systems.

    Raises:
        UsageError: for an option, a value or a command that there is not.
        ValueError: for a recipe, a preset or a checkpoint that there is not, or settings that a recipe has not.
    """
    command, context = _main(), click.Context(_main(), info_name="minidiff")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        _, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=command.name, parent=context)
        context.allow_extra_args, context.ignore_unknown_options = True, command.name == "sample"
    given, left, _ = command.make_parser(context).parse_args(list(words))
    if left:
        raise click.UsageError(f"{command.name} does not read {' '.join(left)}")
    asks_for_help = any(o.is_eager and isinstance(given.get(o.name), str | bool) for o in command.get_params(context))
    for parameter in command.params:
        said = isinstance(given.get(parameter.name), str | int | float | list | tuple)  # else click's own "nothing"
        if not said and parameter.required and not asks_for_help:
            raise click.MissingParameter(ctx=context, param=parameter)
        if not said:
            given[parameter.name] = None
        elif not isinstance(parameter.type, click.Path):
            given[parameter.name] = parameter.type_cast_value(context, given[parameter.name])
    names = [name for option in SYSTEMS for name in _several(given.get(option))]
    if command.name in ("sample", "evaluate"):
        names += [given["system"] if command.name == "sample" else given["source"]]
    for name in names:
        if name:
            _known(name.partition("=")[0])
    if command.name == "train":
        _train(given["recipe"], given["overrides"] or ())
    if command.name == "sample" and given["system"]:
        _told(given["system"], given["words"] or (), [name for option in command.params for name in option.opts])
    if command.name == "download":
        from minidiff.pretrained import preset

        preset(given["preset"])


def _several(given) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _elsewhere(name: str) -> bool:
    """Whether a name stands for something of the reader's own: a placeholder, a folder, a file."""
    return bool(PLACEHOLDER.fullmatch(name)) or "/" in name or "." in name


def _known(name: str) -> None:
    from minidiff.recipes import available
    from minidiff.store import STACKS, checkpoints
    from minidiff.words import nearest

    names = {*checkpoints(), *available(), *STACKS}
    if not (_elsewhere(name) or name in names):
        raise ValueError(f"no checkpoint and no preset {name!r}: {nearest(name, sorted(names))}")


def _train(recipe: str, overrides) -> None:
    from minidiff.recipes import load_recipe

    if not _elsewhere(recipe):
        load_recipe(recipe, [each for each in overrides if not PLACEHOLDER.fullmatch(each)])


def _told(name: str, words, others: list[str]) -> None:
    """What a system is told beside the options of all: read as it would be, without its weights."""
    from minidiff.cli.systems import asking
    from minidiff.metrics.drawing import Drawing
    from minidiff.recipes import load_recipe
    from minidiff.store import checkpoints, recipe_of, stages
    from minidiff.words import nearest

    if _elsewhere(name):
        return
    first, *_ = stages(name)
    recipe = recipe_of(first) if first in checkpoints() else load_recipe(first)
    command = asking(Drawing([recipe.build(empty=True)], names=[first]), name)
    context = click.Context(command)
    try:
        _, left, _ = command.make_parser(context).parse_args(list(words))
    except click.NoSuchOption as error:
        raise click.UsageError(
            f"{name} has no option {error.option_name}: {nearest(error.option_name, others)}"
        ) from None
    if left:
        raise click.UsageError(f"{name} does not read {' '.join(left)}")
