"""Gates over the words of a lesson: no measured number is typed into them, and a picture's text says what it shows.

Decimals and percentages in prose, captions and verdicts come from `glue`, unless they are published (the sentence cites
its paper, or stands in a box "as published") or chosen (a line `% given: why` or `% published: where` stands above the
paragraph). Not looked at are maths, code, whole numbers, and exercises, which are told in numbers: a result that is
typed there is not seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.lessons import ROOT, Cell, Lesson

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+(?![\w.]*\w)|(?:\.\d+)?\s?%)")
MARK = re.compile(r"^% (?:given|published): \S|\{admonition\} .* as published *$", re.M)
REMARK = re.compile(r"^% (?!given: |published: ).*$", re.M)  # comments, which are not shown
BLOCKS = re.compile(
    r"^ *`{3,}\{exercise-start\}[\s\S]*?\{exercise-end\}"
    r"|^(?P<fence> *`{3,})(?!\{(?!math|code))[\s\S]*?^(?P=fence)`* *$|\$\$[\s\S]*?\$\$",
    re.M,
)  # exercises, code, display maths
INLINE = re.compile(r"\$[^$]*\$|(?<!\})`[^`]*`|\{(?!cite)[\w:]+\}`[^`]*`|\]\([^)]*\)|\{(?:value|low|high)[^}]*\}")
CODE = re.compile(r"^(?P<fence> *`{3,})(?!\{math)[\s\S]*?^(?P=fence)`* *$", re.M)
ROLE = re.compile(r"\{[\w:]+\}`[^`]*`")
FORMULA = re.compile(rf"{ROLE.pattern}|`[^`]*`|\$\$[\s\S]*?\$\$|\$([^$]*)\$")
CONVENTIONS = re.compile(
    r"9[59] % (?:\w+ )?(?:interval|bootstrap|band|quantile|chance|level)|% of (?:the|their) (?:bf16 )?peak"
    r"|(?<!\w)\w = \d+\.\d+"  # a setting by its letter
    r"|[Aa]lgorithm \d+\.\d+"
)
SENTENCE = re.compile(r"(?<=[.!?:])\s+(?=[\"*(\[{$A-Z])|\n(?=\|)")
CITED = re.compile(r"\{cite(?::\w+)?\}`")
GENERIC = {"a", "an", "the", "this", "of", "with", "figure", "image", "picture", "plot", "graph", "chart", "diagram"}
FEWEST = 4  # words of a picture's text beside the generic ones
PICTURE = re.compile(r"!\[([^\]]*)\]\(")
ALT_OPTION = re.compile(r"^ *:alt:(.*)$", re.M)


def typed(lesson: Lesson) -> Iterator[str]:
    """Decimals and percentages that a lesson's words hold as typed."""
    for cell in lesson.cells:
        for start, text in _paragraphs(cell) if cell.kind == "markdown" else _spoken(cell):
            for sentence in SENTENCE.split(text):
                plain = CONVENTIONS.sub("", INLINE.sub(" ", sentence))
                found = [] if CITED.search(sentence) else [match[0] for match in NUMBER.finditer(plain)]
                if found:
                    words = " ".join(sentence.split())[:60]
                    yield (
                        f"{lesson.path}:{start}: {', '.join(found)} is typed into the text ({words!r}); glue it, cite "
                        "in its sentence where it was published, or say above the paragraph: % given: why"
                    )


def _paragraphs(cell: Cell) -> Iterator[tuple[int, str]]:
    """Line and text of the paragraphs and tables in which numbers have to be glued."""
    source = BLOCKS.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), cell.source)
    source = REMARK.sub(lambda match: " " * len(match[0]), source)
    excused = False  # a table that follows belongs to its paragraph
    for match in re.finditer(r"(?:^.*\S.*$\n?)+", source, re.M):
        text = match[0]
        table = text.lstrip().startswith("|")
        if not (table and excused):
            marked = MARK.search(text)
            if not marked:
                yield cell.line + source.count("\n", 0, match.start()), text
        excused = bool(marked or CITED.search(text)) if not table else excused


def _spoken(cell: Cell) -> Iterator[tuple[int, str]]:
    """Line and text of a figure's caption, and of the sentences that a verdict chooses from."""
    if cell.figure:
        yield cell.line, str(cell.figure.get("caption", ""))
    for call in cell.calls("verdict"):
        for keyword in call.keywords:
            for part in ast.walk(keyword.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield cell.line + part.lineno - 1, part.value


def hidden_in_formulas(lesson: Lesson) -> Iterator[str]:
    """Roles between dollars, which a page shows as letters: `` $s = {glue:text}`scale`$ ``."""
    for cell in lesson.cells:
        texts = [(cell.line, cell.source)] if cell.kind == "markdown" else _spoken(cell)
        for start, text in texts:
            for match in FORMULA.finditer(CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)):
                if role := ROLE.search(match[1] or ""):
                    line = start + text.count("\n", 0, match.start())
                    yield f"{lesson.path}:{line}: {role[0]} stands in a formula, where no role is read"


def idle_alt_text(lesson: Lesson) -> Iterator[str]:
    """Texts of figures, of ``frames`` and of pictures that do not say what is to be seen."""
    for cell in lesson.cells:
        texts = [cell.alt] if cell.kind == "code" and cell.figure else []
        if cell.kind == "code":
            given = [k.value for call in cell.calls("frames") for k in call.keywords if k.arg == "alt"]
            texts += [ast.unparse(each) for each in given]
        else:
            texts += PICTURE.findall(cell.source) + ALT_OPTION.findall(cell.source)
        for text in texts:
            if problem := idle(text):
                yield f"{lesson.path}:{cell.line}: {problem}"


def idle_pictures(path: Path, root: Path = ROOT) -> Iterator[str]:
    """The same of a page of Markdown that is no lesson."""
    text = path.read_text(encoding="utf-8")
    for pattern in (PICTURE, ALT_OPTION):
        for match in pattern.finditer(text):
            if problem := idle(match[1]):
                yield f"{path}:{1 + text.count(chr(10), 0, match.start())}: {problem}"


def idle(text: str) -> str:
    """What is wrong with a picture's text; nothing where it says enough."""
    words = [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in GENERIC]
    return "" if len(words) >= FEWEST else f"the alt text {text.strip()!r} does not say what is to be seen"
