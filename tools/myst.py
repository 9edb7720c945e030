"""MyST, as the lessons use it, to the plain Markdown that Jupyter and Colab show.

Two passes over the same code: the first numbers equations, figures, tables and exercises and collects titles, the
second writes the text with every reference resolved. What cannot be translated is an error that names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import yaml

from tools.inline import Inline

OPEN = re.compile(r"(?P<indent> *)(?P<fence>`{3,}(?!.*`)|~{3,}|:{3,}(?=\{))(?:\{(?P<name>[\w:-]+)\})?(?P<rest>.*)")
TARGET = re.compile(r"\(([\w:.-]+)\)=\s*")
HEADING = re.compile(r"(#{1,6}) +(.*)")
MATH = re.compile(r"(?P<indent>(?:> ?)* *)\$\$(?P<rest>.*)")
MATH_END = re.compile(r"(?P<tex>.*?)\$\$\s*(?:\((?P<label>[\w:.-]+)\))?\s*")
ENVIRONMENT = re.compile(r"\\begin\{([a-z]+\*?)\}((?!\\begin\{).)*?\\end\{\1\}", re.S)
NUMBERED = re.compile(r"\s*\\begin\{(align|equation|gather|multline|alignat|eqnarray|flalign)(\*?)\}")
ADMONITIONS = {
    name: name.capitalize()
    for name in ["note", "tip", "warning", "important", "caution", "hint", "attention", "danger", "error"]
}
ADMONITIONS |= {"seealso": "See also", "admonition": "", "margin": "", "sidebar": "", "topic": "", "epigraph": ""}


class Translator(Inline):
    """Translates the cells of one lesson, in order. Use a fresh one for each pass."""

    def cell(self, source: str, line: int) -> str:
        """Plain Markdown for one Markdown cell whose source begins at ``line``."""
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._blocks(source.split("\n"), line))).strip()

    def caption(self, figure: dict[str, str], line: int) -> str:
        """The numbered caption of a figure that a code cell draws; registers the figure's name."""
        self.line = line
        number = self._number("figure", figure.get("name"), str(figure.get("caption", "")))
        return f"**{self.index.named('figure', number)}.** {self._inline(str(figure.get('caption', '')).strip())}"

    # --- blocks

    def _blocks(self, lines: list[str], first: int) -> list[str]:
        out: list[str] = []
        i = 0
        while i < len(lines):
            self.line = first + i
            line = lines[i]
            if match := OPEN.fullmatch(line):
                end = self._fence_end(lines, i, match["fence"])
                body, indent = lines[i + 1 : end], match["indent"]
                if match["name"] is None:
                    out += lines[i : end + 1]
                else:
                    body = [x.removeprefix(indent) for x in body]
                    made = self._directive(match["name"], match["rest"].strip(), body, first + i)
                    out += [indent + x if x else x for x in made]
                i = end + 1
            elif match := MATH.fullmatch(line):
                i, made = self._dollars(lines, i, match)
                out += made
            elif match := TARGET.fullmatch(line):
                self.pending.append(match[1])
                i += 1
            elif match := HEADING.fullmatch(line):
                out.append(self._heading(match[1], match[2]))
                i += 1
            elif line.startswith(("%", "+++")):
                i += 1
            elif re.match(r" *`{3,}\{", line):
                raise self._error("a backtick fence ends at a backtick in its title: use ::: or leave it out")
            elif NUMBERED.match(line):
                raise self._error(
                    "write display maths as $$ ... $$ (eq-label), with \\begin{aligned} inside, not as amsmath"
                )
            else:
                j = i + 1
                while j < len(lines) and lines[j].strip() and not self._starts_block(lines[j]):
                    j += 1
                out += self._inline("\n".join(lines[i:j])).split("\n")
                i = j
        return out

    @staticmethod
    def _starts_block(line: str) -> bool:
        return any(p.fullmatch(line) for p in (OPEN, MATH, TARGET, HEADING)) or line.startswith(("%", "+++"))

    def _fence_end(self, lines: list[str], start: int, fence: str) -> int:
        for i in range(start + 1, len(lines)):
            text = lines[i].strip()
            if len(text) >= len(fence) and set(text) == {fence[0]}:
                return i
        raise self._error(f"the fence {fence} is never closed")

    def _heading(self, marks: str, title: str) -> str:
        title = self._inline(title)
        for label in self.pending:
            self._define(label)
            self.index.titles[label] = title
        self.pending = []
        if marks == "#":
            self.index.documents.setdefault(self.lesson.path.stem, title)
            title = f"{self.lesson.number}. {title}" if self.lesson.number else title
        return f"{marks} {title}"

    def _dollars(self, lines: list[str], i: int, match: re.Match) -> tuple[int, list[str]]:
        indent, rest, tex = match["indent"], match["rest"], []
        while not (end := MATH_END.fullmatch(rest)):
            tex.append(rest)
            i += 1
            if i == len(lines) or not lines[i].strip():
                raise self._error("display maths $$ without its closing $$ (no blank line may stand between)")
            rest = lines[i].removeprefix(indent)
        tex.append(end["tex"])
        made = self._math("\n".join(tex).strip("\n"), end["label"])
        return i + 1, [indent + x for x in (_joined_maths(made) if ">" in indent else made)]

    def _math(self, tex: str, label: str | None) -> list[str]:
        if NUMBERED.match(tex):
            raise self._error("an amsmath environment cannot stand inside $$; use \\begin{aligned}")
        outside = tex
        while (inner := ENVIRONMENT.sub("", outside)) != outside:
            outside = inner
        if r"\\" in outside or re.search(r"(?<!\\)&", outside):  # Sphinx aligns such lines by itself, MathJax does not
            tex = f"\\begin{{aligned}}\n{tex.strip()}\n\\end{{aligned}}"
        tag = [rf"\tag{{{self._number('equation', label, '')}}}"] if label else []
        return ["$$", *tex.strip().split("\n"), *tag, "$$"]

    # --- directives

    def _directive(self, name: str, argument: str, body: list[str], line: int) -> list[str]:
        options, used = self._options(body)
        body, start = body[used:], line + 1 + used
        if name in ADMONITIONS or name == "dropdown":
            title = self._inline(argument) or ADMONITIONS.get(name, "Details")
            return self._box(
                title, self._blocks(body, start), fold=name == "dropdown" or "dropdown" in options.get("class", "")
            )
        if name.startswith("prf:"):
            return self._statement(name[4:], argument, options, self._blocks(body, start))
        handler: Callable[..., list[str]] | None = getattr(self, "_do_" + re.sub(r"\W", "_", name), None)
        if handler is None:
            raise self._error(f"no plain Markdown for the directive {{{name}}}")
        return handler(argument, options, body, start)

    def _options(self, body: list[str]) -> tuple[dict[str, str], int]:
        """The options at the head of a directive (``:key: value`` lines or a YAML block), and their count of lines."""
        if body and body[0].strip() == "---":
            end = body.index("---", 1)
            return {k: str(v) for k, v in yaml.safe_load("\n".join(body[1:end])).items()}, end + 1
        options: dict[str, str] = {}
        for line in body:
            if not (match := re.fullmatch(r":([\w-]+):\s*(.*)", line)):
                break
            options[match[1]] = match[2]
        return options, len(options)

    def _box(self, title: str, inner: list[str], fold: bool) -> list[str]:
        inner = "\n".join(inner).strip("\n").split("\n")
        if fold:
            return ["<details>", f"<summary><b>{_html(title)}</b></summary>", "", *inner, "", "</details>", ""]
        head = [f"**{title}**", ""] if title else []
        return ["", *("> " + x if x else ">" for x in head + _joined_maths(inner)), ""]

    def _statement(self, kind: str, title: str, options: dict[str, str], inner: list[str]) -> list[str]:
        """A theorem, proof and so on, of sphinx-proof."""
        if kind == "proof":
            return self._box("Proof", inner, fold=False)
        head = self.index.named(kind, self._number(kind, options.get("label"), title))
        return self._box(f"{head} ({self._inline(title)})" if title else head, inner, fold=False)

    def _do_exercise_start(self, title: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        if "label" not in options:
            raise self._error("an exercise needs a :label:")
        number = self._number("exercise", options["label"], title)
        return [
            "---",
            "",
            f"### {self.index.named('exercise', number)}: {self._inline(title)}",
            "",
            *self._blocks(body, start),
        ]

    _do_exercise = _do_exercise_start

    def _do_exercise_end(self, *_) -> list[str]:
        return []

    def _do_math(self, argument: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        return self._math("\n".join([argument, *body]).strip("\n"), options.get("label"))

    def _do_figure(self, source: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        picture, caption = self._image(options.get("alt", ""), source), "\n".join(body).strip()
        if not caption:
            return [picture]
        number = self._number("figure", options.get("name"), caption)
        return [picture, "", f"**{self.index.named('figure', number)}.** {self._inline(caption)}"]

    _do_image = _do_figure

    def _do_table(self, title: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        number = self._number("table", options.get("name"), title)
        return [f"**{self.index.named('table', number)}.** {self._inline(title)}", "", *self._blocks(body, start)]

    def _do_list_table(self, title: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        rows: list[list[str]] = []
        for line in filter(str.strip, body):
            if match := re.fullmatch(r"[*-] [*-] ?(.*)", line):
                rows.append([match[1]])
            elif rows and (match := re.fullmatch(r"  [*-] ?(.*)", line)):
                rows[-1].append(match[1])
            elif rows and line.startswith("    "):
                rows[-1][-1] += " " + line.strip()
            else:
                raise self._error(f"not a row of a list-table: {line!r}")
        cells = ["| " + " | ".join(self._inline(x) for x in row) + " |" for row in rows]
        head = self._do_table(title, options, [], start) if title else []
        return [*head, *cells[:1], "|" + "---|" * len(rows[0]), *cells[1:]]

    def _do_code_block(self, language: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        return ["```" + language, *body, "```"]

    _do_code = _do_code_block

    def _do_tab_set(self, argument: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        return self._blocks(body, start)

    def _do_tab_item(self, title: str, options: dict[str, str], body: list[str], start: int) -> list[str]:
        return [f"**{self._inline(title)}**", "", *self._blocks(body, start), ""]

    def _do_bibliography(self, *_) -> list[str]:
        self.listed = True
        return self.references()


def _html(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def _joined_maths(lines: list[str]) -> list[str]:
    """Display maths on one line each: in a quotation, further lines would carry the quotation mark into the TeX."""
    block = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.S | re.M)
    return block.sub(lambda m: "$$" + m[1].replace("\n", " ") + "$$", "\n".join(lines)).split("\n")
