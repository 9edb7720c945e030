"""The bibliography as author-year text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pybtex.database import Entry, parse_file
from pybtex.richtext import Text


class Bibliography:
    """Entries of a BibTeX file; an absent file has none."""

    def __init__(self, path: Path) -> None:
        self._entries = parse_file(str(path), bib_format="bibtex").entries if path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def author_year(self, key: str) -> tuple[str, str]:
        """``("Ho et al.", "2020")``."""
        names = self._names(self._entries[key])
        authors = names[0] + " et al." if len(names) > 2 else " and ".join(names)
        return authors or key, self._field(key, "year") or "n.d."

    def entry(self, key: str) -> str:
        """One line: authors, year, title, where published, address."""
        authors, year = self.author_year(key)
        venues = (self._field(key, name) for name in ("journal", "booktitle", "publisher", "howpublished"))
        arxiv = self._field(key, "eprint")
        address = self._field(key, "url") or (f"https://arxiv.org/abs/{arxiv}" if arxiv else "")
        parts = [f"{authors} ({year}). *{self._field(key, 'title')}*", next(filter(None, venues), ""), address]
        return ". ".join(part for part in parts if part) + "."

    def _field(self, key: str, name: str) -> str:
        return str(Text.from_latex(self._entries[key].fields.get(name, "")))

    @staticmethod
    def _names(entry: Entry) -> list[str]:
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        return [str(Text.from_latex(" ".join(p.prelast_names + p.last_names))) for p in people]
