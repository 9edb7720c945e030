"""The tables of the status page, as Markdown, from what runs have recorded; nothing in them is typed by hand."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minidiff.course.claims import VERDICTS, anchor, ledger, load_records
from minidiff.course.notebook import RECORDS_VARIABLE
from tools.lessons import ROOT, Lesson, appendices, claims, read_all

NOT_RUN = "not run yet"


def tables(records_dir: str | Path | None = None, root: Path = ROOT) -> dict[str, str]:
    """Markdown of ``claims``, ``exercises``, ``lessons`` and ``checkpoints``.

    Args:
        records_dir: where the lessons' records are; default ``$MINIDIFF_RECORDS``. What has no record is "not run yet".
        root: the folder with ``lessons/`` and ``data/checkpoints/``.
    """
    folder = records_dir or os.environ.get(RECORDS_VARIABLE)
    records = {record["lesson"]: record for record in load_records(folder)} if folder else {}
    lessons = [*read_all(root), *appendices(root)]
    return {
        "claims": claims_table(lessons, records),
        "exercises": exercises_table(),
        "lessons": lessons_table(lessons, records),
        "checkpoints": checkpoints_table(root / "data/checkpoints"),
    }


def claims_table(lessons: Iterable[Lesson], records: Mapping[str, dict]) -> str:
    """The ledger: verdicts counted by lesson, controls that are owed, then every claim, measured or not."""
    rows = [(lesson, row) for lesson in lessons for row in _ledger_of(lesson, records.get(lesson.slug))]
    return (_counts(rows) if rows else "") + table(
        {
            "claim": f"{escape(row['statement'])} <br> {_link(lesson, row['id'])}",
            "verdict": f"**{row['verdict']}**",
            "measured": escape(row["measured"] + (f" {row['interval']}" if row["interval"] != "–" else "")),
            "required": escape(row["criterion"]),
            "control": escape("; ".join(x for x in (row["negative"], row["control"]) if x != "–") or "–"),
            "source": f"{escape(row['source'])} <br> ({row['tier']})",
        }
        for lesson, row in rows
    )


def _counts(rows: list[tuple[Lesson, dict[str, str]]]) -> str:
    """A sentence and a table of how many claims of each lesson have which verdict, and how many lack a control."""
    kinds = [verdict for verdict in (*VERDICTS, NOT_RUN) if any(row["verdict"] == verdict for _, row in rows)]
    by_lesson: dict[str, Counter] = {}
    for lesson, row in rows:
        owed = {"no control yet": 1} if row["control"].startswith("none") else {}
        by_lesson.setdefault(lesson.path.stem, Counter()).update({row["verdict"]: 1, "claims": 1} | owed)
    total = sum(by_lesson.values(), Counter())
    columns = [*kinds, "claims", "no control yet"]
    counted = table(
        {"lesson": escape(name)} | {column: str(counts[column]) for column in columns}
        for name, counts in [*by_lesson.items(), ("all", total)]
    )
    verdicts = "; ".join(f"{kind}: {total[kind]}" for kind in kinds)
    return f"{len(rows)} claims; {verdicts}; no control yet: {total['no control yet']}.\n\n{counted}\n\n"


def _link(lesson: Lesson, id: str) -> str:
    """The claim's id, leading to its card on the page of its lesson."""
    return f'<a href="../{lesson.place}.html#{anchor(id)}"><code>{id}</code></a>'


def _ledger_of(lesson: Lesson, record: dict | None) -> list[dict[str, str]]:
    measured = {row["id"]: row for row in ledger([record] if record else [])}
    blank = dict.fromkeys(("measured", "interval", "criterion", "negative", "control"), "–") | {"verdict": NOT_RUN}
    return [
        measured.get(given["id"]) or blank | {key: given[key] for key in ("id", "statement", "source", "tier")}
        for _, given in claims(lesson)
    ]


def lessons_table(lessons: Iterable[Lesson], records: Mapping[str, dict]) -> str:
    """Run time of each lesson, as its own finish() measured it."""
    seconds = {lesson.path.stem: records.get(lesson.slug, {}).get("seconds") for lesson in lessons}
    rows = ({"lesson": escape(name), "run time": NOT_RUN if s is None else f"{s:.1f} s"} for name, s in seconds.items())
    return table(rows)


def exercises_table() -> str:
    """Kill rates: how many of the planted wrong answers of each exercise its cases catch."""
    from tools.exercises import exercise_report

    report = exercise_report()
    killed, planted = (sum(row[key] for row in report) for key in ("killed", "mutants"))
    head = f"{killed} of {planted} planted wrong answers are caught.\n\n" if report else ""
    return head + table(
        {
            "exercise": f"`{row['id']}`",
            "lesson": escape(row["lesson"]),
            "cases": str(row["cases"]),
            "planted wrong answers": str(row["mutants"]),
            "caught": str(row["killed"]),
            "kill rate": f"{row['killed'] / row['mutants']:.0%}" if row["mutants"] else "–",
        }
        for row in report
    )


def checkpoints_table(folder: Path) -> str:
    """The committed checkpoints, from the cards that training wrote."""
    rows = []
    for path in sorted(folder.glob("*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        facts = {key: _find(card, key) for key in ("data", "parameters", "steps", "seed", "seconds")}
        facts["metrics"] = "; ".join(f"{k} {_plain(v)}" for k, v in (_find(card, "metrics") or {}).items())
        facts["a tenth more changes the loss by"] = _longer(card.get("longer"))
        rows.append({"checkpoint": f"`{path.parent.name}`"} | {k: escape(_plain(v)) for k, v in facts.items()})
    return table(rows)


def _longer(change: Mapping[str, float] | None) -> str | None:
    """What ``tools/longer.py`` found."""
    return change and "{change:+.1%} [{low:+.1%}, {high:+.1%}]".format_map(change)


def _find(card: Any, key: str) -> Any:
    """The entry ``key`` of the card or of what is nested in it."""
    if not isinstance(card, dict) or key in card:
        return card[key] if isinstance(card, dict) else None
    return next((found for value in card.values() if (found := _find(value, key)) is not None), None)


def _plain(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(str(v) for v in value.values() if isinstance(v, str)) or "–"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """Rows of Markdown as a Markdown table, the columns being the keys of the first; no rows: "not run yet"."""
    rows = list(rows)
    if not rows:
        return f"*{NOT_RUN}*"
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([row[key] for key in rows[0]] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(text: str) -> str:
    """Plain text as Markdown for one cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>$|#])", r"\\\1", re.sub(r"\s+", " ", text))
