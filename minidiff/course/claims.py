"""Claims: statements of a paper or lecture that a lesson checks, each with a criterion and a negative control.

A claim is measured by the cell that states it, recorded, and listed in the ledger of the status page. Its negative
control is the tempting wrong version: it must fail the very criterion that the claim meets, otherwise the check could
not have failed and :class:`VacuousCheck` is raised.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minidiff.course.notebook import current, publish, show

TIERS = ("exact", "small", "production")
HOLDS, NOT_HERE, FAILS = "holds", "does not hold at this scale", "fails"


class ClaimFailed(AssertionError):
    """An exact or production claim does not hold."""


class VacuousCheck(AssertionError):
    """A negative control meets the criterion of its claim, so the check shows nothing."""


@dataclass(frozen=True)
class Claim:
    """One measured claim.

    Attributes:
        low, high: the criterion, ``low < value < high``, an infinite end being no condition; with ``closed`` the ends
            are allowed.
        negative: name of a wrong version -> what it measures.
        interval: 95 % interval of ``value``, or None.
        no_negative: why there is no negative control, or None.
    """

    id: str
    statement: str
    value: float
    low: float
    high: float
    closed: bool
    tier: str
    source: str
    equations: tuple[str, ...] = ()
    negative: Mapping[str, float] | None = None
    no_negative: str | None = None
    interval: tuple[float, float] | None = None

    def meets(self, value: float) -> bool:
        """Whether ``value`` meets the criterion (NaN never does)."""
        return self.low <= value <= self.high if self.closed else self.low < value < self.high

    @property
    def holds(self) -> bool:
        """The value and the whole interval meet the criterion."""
        return all(self.meets(v) for v in (self.value, *(self.interval or ())))

    @property
    def verdict(self) -> str:
        """``holds``, ``fails`` or, for the small tier, ``does not hold at this scale``."""
        return HOLDS if self.holds else NOT_HERE if self.tier == "small" else FAILS

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        if self.closed:
            return f"between {_number(self.low)} and {_number(self.high)}"
        return f"below {_number(self.high)}" if math.isinf(self.low) else f"above {_number(self.low)}"

    def row(self) -> dict[str, str]:
        """This claim as one row of the ledger, every entry a string."""
        negative = "; ".join(f"{name}: {_number(v)} (fails)" for name, v in (self.negative or {}).items())
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "tier": self.tier,
            "measured": _number(self.value),
            "interval": f"[{_number(self.interval[0])}, {_number(self.interval[1])}]" if self.interval else "–",
            "criterion": self.criterion,
            "negative": negative or (f"none: {self.no_negative}" if self.no_negative else "–"),
            "verdict": self.verdict,
        }

    def record(self) -> dict[str, Any]:
        """This claim as JSON-ready data, row included."""
        return asdict(self) | {"verdict": self.verdict, "row": self.row()}

    def __str__(self) -> str:
        row = self.row()
        interval = f", 95 % interval {row['interval']}" if self.interval else ""
        control = f"; negative control {row['negative']}" if self.negative else ""
        measured = f"Measured {row['measured']}{interval}, required {self.criterion}{control}."
        return f"claim {self.id}: {self.verdict}. {measured}"

    def _repr_html_(self) -> str:
        row = {key: html.escape(text) for key, text in self.row().items()}
        facts = [f"measured <strong>{row['measured']}</strong>", f"required {row['criterion']}"]
        facts[1:1] = [f"95 % interval {row['interval']}"] if self.interval else []
        facts += [f"negative control {row['negative']}"] if self.negative or self.no_negative else []
        colour = "#0072b2" if self.holds else "#d55e00"
        return (
            f'<div class="claim" style="border-left: 0.3em solid {colour}; padding: 0.3em 0.8em; margin: 0.5em 0">'
            f"<div><strong>{html.escape(self.verdict.capitalize())}.</strong> {row['statement']}</div>"
            f'<div style="font-size: 0.85em; opacity: 0.85">{" · ".join(facts)}<br>'
            f"<code>{row['id']}</code> · {row['tier']} · {row['source']}</div></div>"
        )


def claim(
    id: str,
    statement: str,
    value: float,
    *,
    tier: str,
    source: str,
    below: float | None = None,
    above: float | None = None,
    between: tuple[float, float] | None = None,
    negative: float | Mapping[str, float] | None = None,
    no_negative: str | None = None,
    interval: tuple[float, float] | None = None,
    equations: Iterable[str] = (),
) -> None:
    """Check a claim, record it, show its verdict, and glue ``<id>``, ``<id>-verdict`` (``<id>-low``, ``<id>-high``).

    Running the same cell again replaces the claim.

    Args:
        id: unique in the course, lower case with hyphens.
        statement: what is claimed, as plain text.
        value: what this cell measured.
        tier: ``"exact"`` (float64), ``"small"`` (trained models; needs ``interval``) or ``"production"``.
        source: paper and equation, or lecture.
        below, above, between: the criterion, exactly one of them; the ends of ``between`` are allowed.
        negative: what the tempting wrong version measures, or one such value per name; each must fail the criterion.
        no_negative: why an exact claim has no negative control.
        interval: 95 % interval of the value; the claim holds only when all of it meets the criterion.
        equations: labels of the lesson's equations that this claim checks.

    Raises:
        ValueError: the arguments do not make a claim, or another claim of this run has the same id.
        VacuousCheck: a negative control meets the criterion.
        ClaimFailed: an exact or production claim does not hold. A small claim is recorded as not holding instead.
    """
    low, high, closed = _criterion(below, above, between)
    made = Claim(
        id=id,
        statement=statement,
        value=_real(value, "value"),
        low=low,
        high=high,
        closed=closed,
        tier=tier,
        source=source,
        equations=(equations,) if isinstance(equations, str) else tuple(equations),
        negative=_controls(negative),
        no_negative=no_negative,
        interval=_interval(interval),
    )
    _validate(made)
    run = current()
    if run.claims.get(id, made).statement != statement:
        raise ValueError(f"claim {id!r} was already made in this lesson, about something else; choose another id")
    for name, wrong in (made.negative or {}).items():
        if made.meets(wrong):
            raise VacuousCheck(
                f"claim {id!r} is vacuous: its negative control {name!r} gives {_number(wrong)}, "
                f"which also is {made.criterion}"
            )
    run.claims[id] = made
    run.save()
    show(str(made), made._repr_html_())
    publish(id, made.value)
    publish(f"{id}-verdict", made.verdict)
    if made.interval:
        publish(f"{id}-low", made.interval[0])
        publish(f"{id}-high", made.interval[1])
    if made.verdict == FAILS:
        raise ClaimFailed(str(made))


def load_records(folder: str | Path) -> list[dict[str, Any]]:
    """The records of all lessons that were run, by lesson; an absent folder holds none.

    Raises:
        ValueError: a file in ``folder`` is not a record.
    """
    records = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            records.append({key: record[key] for key in ("lesson", "seconds", "claims")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a lesson's record ({error!r}); delete it and run the lesson") from error
    return records


def ledger(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """All claims of ``records`` as rows of strings, the key ``lesson`` added."""
    return [{"lesson": record["lesson"], **claim["row"]} for record in records for claim in record["claims"]]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _real(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be one number, not {value!r}") from error


def _criterion(below, above, between) -> tuple[float, float, bool]:
    given = [name for name, x in (("below", below), ("above", above), ("between", between)) if x is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of below=, above=, between=; got {given or 'none'}")
    if between is not None:
        low, high = (_real(x, "an end of between") for x in between)
    else:
        low = -math.inf if above is None else _real(above, "above")
        high = math.inf if below is None else _real(below, "below")
    if not low < high:
        raise ValueError(f"the criterion from {low} to {high} is empty")
    return low, high, between is not None


def _controls(negative) -> dict[str, float] | None:
    if negative is None:
        return None
    named = negative if isinstance(negative, Mapping) else {"wrong version": negative}
    controls = {name: _real(x, f"negative control {name!r}") for name, x in named.items()}
    unusable = [name for name, x in controls.items() if math.isnan(x)]
    if unusable or not controls:
        raise ValueError(f"a negative control must measure something; NaN or nothing fails anything: {unusable}")
    return controls


def _interval(interval) -> tuple[float, float] | None:
    if interval is None:
        return None
    low, high = (_real(x, "an end of the interval") for x in interval)
    if low > high:
        raise ValueError(f"the interval ({low}, {high}) ends before it begins")
    return low, high


def _validate(claim: Claim) -> None:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id):
        raise ValueError(f"a claim's id is lower-case words joined by hyphens, not {claim.id!r}")
    if claim.tier not in TIERS:
        raise ValueError(f"claim {claim.id!r}: tier {claim.tier!r} is not one of {', '.join(TIERS)}")
    if not claim.statement.strip() or not claim.source.strip():
        raise ValueError(f"claim {claim.id!r} needs a statement and a source")
    if claim.tier == "small" and claim.interval is None:
        raise ValueError(f"claim {claim.id!r}: a small claim needs interval=, its 95 % interval")
    if claim.tier == "exact" and bool(claim.negative) == bool(claim.no_negative):
        raise ValueError(f"claim {claim.id!r}: an exact claim needs negative=, or no_negative='why', and not both")
