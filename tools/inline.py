"""Running text of a lesson as plain Markdown: roles, links and pictures, and the labels that references resolve to."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tools.bibliography import Bibliography
from tools.lessons import Lesson

INLINE = re.compile(
    r"\{(?P<role>[a-z][\w:.-]*)\}(?P<ticks>`+)(?P<content>.+?)(?P=ticks)(?!`)"
    r"|(?P<code>(?P<t>`+)(?!`).+?(?<!`)(?P=t)(?!`))"
    r"|(?P<math>(?<![\\$])\$(?!\$)(?:\\.|[^$\\])+?\$(?!\$))"
    r"|(?P<image>!\[(?P<alt>[^\]]*)\]\((?P<src>[^)\s]+)\))"
    r"|(?P<link>\[(?P<text>[^\[\]]*)\]\((?P<to>[^)\s]+)\))"
    r"|(?P<bad>\{\{.*?\}\}|\[\^[\w-]+\]|(?<=[\]`*_)])\{[.#][^}]*\}|\{[a-z][\w:.-]*\}`)",
    re.S,
)


@dataclass
class Index:
    """What references resolve to: label -> number or title; filled by the first pass over all lessons.

    Attributes:
        numbers: label -> (kind, number), kind one of equation, figure, table, exercise.
        titles: label of a section, figure or exercise -> its title.
        documents: file stem -> title.
        before: what the pages without a number have counted, up to and with each: file stem -> kind -> how many.
    """

    bibliography: Bibliography
    repository: tuple[str, str] = ("", "main")
    formats: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, tuple[str, str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    before: dict[str, Counter[str]] = field(default_factory=dict)
    complete: bool = False

    def named(self, kind: str, number: str) -> str:
        """``Figure 1.2``, in the words of the book's ``numfig_format``."""
        return self.formats.get(kind, kind.capitalize() + " %s").replace("%s", number)


class Inline:
    """Translates running text of one lesson and keeps count of what is numbered; see :class:`tools.myst.Translator`."""

    def __init__(self, lesson: Lesson, index: Index) -> None:
        self.lesson, self.index = lesson, index
        self.counters: Counter[str] = Counter()
        if not lesson.number:  # the book counts on through all pages without a number
            earlier = [counted for stem, counted in index.before.items() if stem < lesson.path.stem]
            self.counters = Counter(earlier[-1]) if earlier else self.counters
            index.before[lesson.path.stem] = self.counters
        self.cited: list[str] = []
        self.glued = False
        self.listed = False
        self.line = 1
        self.pending: list[str] = []

    def _inline(self, text: str) -> str:
        first = self.line

        def one(match: re.Match) -> str:
            self.line = first + text.count("\n", 0, match.start())
            if match["role"]:
                return self._role(match["role"], match["content"].replace("\n", " "))
            if match["image"]:
                return self._image(match["alt"], match["src"])
            if match["link"]:
                return self._link(match["text"], match["to"])
            if match["bad"]:
                raise self._error(f"no plain Markdown for {match['bad']!r}")
            return match[0]

        made = INLINE.sub(one, text)
        self.line = first
        return made

    def _role(self, role: str, content: str) -> str:
        text, target = content, content
        if match := re.fullmatch(r"(.*?)\s*<([^<>]+)>", content):
            text, target = match[1], match[2]
        explicit = text != target
        if role in ("eq", "math:numref"):
            return f"({self._lookup(target, 'equation')})"
        if role in ("numref", "prf:ref"):
            return self._numref(target, text if explicit else None)
        if role in ("ref", "doc"):
            return text if explicit else self._title(role, target)
        if role in ("cite:p", "cite:t", "cite"):
            return self._cite([k.strip() for k in content.split(",")], textual=role == "cite:t")
        if role.startswith("py:"):
            name = text.split(".")[-1] if text.startswith("~") else text
            return f"`{name}()`" if role in ("py:func", "py:meth") and not explicit else f"`{name}`"
        if role in ("glue:text", "glue", "glue:", "glue:any"):
            self.glued = True
            key = content.rpartition("::")[2]
            return f"`{key.rpartition(':')[0] or key}`"
        if role == "math":
            return f"${content}$"
        if role in ("sub", "sup", "kbd"):
            return f"<{role}>{content}</{role}>"
        if role in ("term", "abbr", "guilabel", "command"):
            return text
        raise self._error(f"no plain Markdown for the role {{{role}}}")

    def _numref(self, target: str, text: str | None) -> str:
        if target not in self.index.numbers:
            return self._unknown(f"{{numref}}`{target}`: nothing numbered has this name")
        kind, number = self.index.numbers[target]
        return text.replace("%s", number).replace("{number}", number) if text else self.index.named(kind, number)

    def _title(self, role: str, target: str) -> str:
        if role == "doc":
            title = self.index.documents.get(Path(target).name.removesuffix(".md"))
        elif self.index.numbers.get(target, ("",))[0] == "exercise":
            return self._numref(target, None)
        else:
            title = self.index.titles.get(target)
        return f"*{title}*" if title else self._unknown(f"{{{role}}}`{target}`: nothing with a title has this name")

    def _cite(self, keys: list[str], textual: bool) -> str:
        missing = [k for k in keys if k not in self.index.bibliography]
        if missing:
            raise self._error(f"no entry {missing[0]!r} in the bibliography")
        self.cited += keys
        if textual:
            return ", ".join("{} ({})".format(*self.index.bibliography.author_year(k)) for k in keys)
        return "(" + "; ".join("{}, {}".format(*self.index.bibliography.author_year(k)) for k in keys) + ")"

    def _image(self, alt: str, source: str) -> str:
        if not alt.strip():
            raise self._error(f"the picture {source} has no alt text")
        return f"![{alt}]({self._address(source, 'raw')})"

    def _link(self, text: str, to: str) -> str:
        if to.startswith("#"):
            return text or self._title("ref", to[1:])
        name = to.partition("#")[0]
        if "://" in to or not name:
            return f"[{text}]({to})"
        known = Path(name).name.removesuffix(".md") in self.index.documents
        return f"[{text or (self._title('doc', name) if known else name)}]({self._address(name, 'blob')})"

    def _address(self, path: str, kind: str) -> str:
        """A file of the repository by its address, since Colab has only the notebook."""
        if "://" in path:
            return path
        root = self.lesson.path.parents[1]
        file = (self.lesson.path.parent / path).resolve()
        if not file.is_file() or not file.is_relative_to(root.resolve()):
            return self._unknown(f"there is no file {path}")
        relative = file.relative_to(root.resolve()).as_posix()
        if relative.startswith("lessons/"):
            relative = f"notebooks/{file.stem}.ipynb"
        url, branch = self.index.repository
        return f"{url}/{kind}/{branch}/{relative}"

    def references(self) -> list[str]:
        """The cited works, one line each."""
        return [f"- {self.index.bibliography.entry(key)}" for key in sorted(set(self.cited))]

    def _number(self, kind: str, label: str | None, title: str) -> str:
        self.counters[kind] += 1
        number = f"{self.lesson.number}.{self.counters[kind]}" if self.lesson.number else str(self.counters[kind])
        if label:
            self._define(label)
            self.index.numbers[label] = (kind, number)
            if title.strip():
                self.index.titles[label] = title.strip()
        return number

    def _define(self, label: str) -> None:
        if ":" in label:
            raise self._error(f"label {label!r}: use hyphens, a colon breaks the page's script")
        here = f"{self.lesson.path}:{self.line}"
        if not self.index.complete and label in self.index.places:
            raise self._error(f"label {label!r} is already used at {self.index.places[label]}")
        self.index.places[label] = here

    def _lookup(self, label: str, kind: str) -> str:
        found, number = self.index.numbers.get(label, ("", ""))
        return number if found == kind else self._unknown(f"no {kind} has the label {label!r}")

    def _unknown(self, message: str) -> str:
        if self.index.complete:
            raise self._error(message)
        return "?"

    def _error(self, message: str) -> Exception:
        return self.lesson.error(self.line, message)
