"""Claims: statements of a paper or lecture that a lesson checks, each with a criterion and a control that must fail it.

A claim is measured by the cell that states it, recorded, and listed in the ledger of the status page. The control of an
exact claim is negative, the tempting wrong version; that of a small claim does nothing: no guidance, an untrained
network, interpolation. A control that meets the criterion shows that the check could not have failed:
:class:`VacuousCheck`. Exact and production claims hold or raise; a small one holds, is refuted here or stays undecided.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minidiff.course.notebook import current, glue, publish, show

Control = float | tuple[float, float, float]  # a value, or a value and the ends of its interval

TIERS = ("exact", "small", "production")
HOLDS, REFUTED, UNDECIDED, FAILS = "holds", "refuted here", "undecided", "fails"
VERDICTS = (HOLDS, REFUTED, UNDECIDED, FAILS)
COLOURS = {HOLDS: "#0072b2", UNDECIDED: "#777777"}


class ClaimFailed(AssertionError):
    """An exact or production claim does not hold."""


class VacuousCheck(AssertionError):
    """A control meets the criterion of its claim, so the check shows nothing."""


@dataclass(frozen=True)
class Claim:
    """One measured claim.

    Attributes:
        low, high: the criterion, ``low < value < high``, an infinite end being no condition; with ``closed`` the ends
            are allowed.
        negative: name of a wrong version -> what it measures, as a value or a value and the ends of its interval.
        no_negative: why there is no negative control, or None.
        control: the same for versions that do nothing.
        no_control: why there is none, or None.
        interval: 95 % interval of ``value``, or None.
        within: the range of what is measured.
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
    negative: Mapping[str, tuple[float, ...]] | None = None
    no_negative: str | None = None
    control: Mapping[str, tuple[float, ...]] | None = None
    no_control: str | None = None
    interval: tuple[float, float] | None = None
    within: tuple[float, float] = (-math.inf, math.inf)

    def meets(self, value: float) -> bool:
        """Whether ``value`` meets the criterion (NaN never does)."""
        return self.low <= value <= self.high if self.closed else self.low < value < self.high

    @property
    def span(self) -> tuple[float, ...]:
        """The value and the ends of its interval."""
        return (self.value, *(self.interval or ()))

    @property
    def holds(self) -> bool:
        """The value and the whole interval meet the criterion."""
        return all(map(self.meets, self.span))

    @property
    def refuted(self) -> bool:
        """The value and the whole interval miss the criterion, all on one side of it."""
        missed = not any(map(self.meets, self.span))
        return missed and (max(self.span) <= self.low or min(self.span) >= self.high)

    @property
    def verdict(self) -> str:
        """``holds``, else ``fails`` or, for the small tier, ``refuted here`` or ``undecided``."""
        if self.holds:
            return HOLDS
        return FAILS if self.tier != "small" else REFUTED if self.refuted else UNDECIDED

    @property
    def controls(self) -> dict[str, tuple[float, ...]]:
        """All that must fail the criterion."""
        return {**(self.negative or {}), **(self.control or {})}

    @property
    def criterion(self) -> str:
        """The criterion in words."""
        if self.closed:
            return f"between {_number(self.low)} and {_number(self.high)}"
        return f"below {_number(self.high)}" if math.isinf(self.low) else f"above {_number(self.low)}"

    def row(self) -> dict[str, str]:
        """This claim as one row of the ledger, every entry a string."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "tier": self.tier,
            "measured": _number(self.value),
            "interval": f"[{_number(self.interval[0])}, {_number(self.interval[1])}]" if self.interval else "–",
            "criterion": self.criterion,
            "negative": _list(self.negative, self.no_negative),
            "control": _list(self.control, self.no_control),
            "verdict": self.verdict,
        }

    def record(self) -> dict[str, Any]:
        """This claim as JSON-ready data, row included."""
        return asdict(self) | {"verdict": self.verdict, "row": self.row()}

    def __str__(self) -> str:
        row = self.row()
        interval = f", 95 % interval {row['interval']}" if self.interval else ""
        control = "".join(f"; {what}" for what in _controls_of(row))
        measured = f"Measured {row['measured']}{interval}, required {self.criterion}{control}."
        return f"claim {self.id}: {self.verdict}. {measured}"

    def _repr_html_(self) -> str:
        row = {key: html.escape(text) for key, text in self.row().items()}
        facts = [f"measured <strong>{row['measured']}</strong>", f"required {row['criterion']}"]
        facts[1:1] = [f"95 % interval {row['interval']}"] if self.interval else []
        facts += _controls_of(row)
        line = COLOURS.get(self.verdict, "#d55e00")
        style = f"border-left: 0.3em solid {line}; padding: 0.3em 0.8em; margin: 0.5em 0"
        return (
            f'<div class="claim" id="{anchor(self.id)}" style="{style}">'
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
    negative: Control | Mapping[str, Control] | None = None,
    no_negative: str | None = None,
    control: Control | Mapping[str, Control] | None = None,
    no_control: str | None = None,
    interval: tuple[float, float] | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
    equations: Iterable[str] = (),
) -> None:
    """Check a claim, record it, show its verdict, and glue ``<id>`` (``<id>-low``, ``<id>-high``).

    Running the same cell again replaces the claim. What the text says of it, :func:`verdict` chooses.

    Args:
        id: unique in the course, lower case with hyphens.
        statement: what is claimed, as plain text.
        value: what this cell measured.
        tier: ``"exact"`` (float64), ``"small"`` (trained models) or ``"production"``.
        source: paper and equation, or lecture.
        below, above, between: the criterion, exactly one of them; the ends of ``between`` are allowed.
        negative: what the tempting wrong version measures, or one such value per name; each must fail the criterion.
        no_negative: why there is none. An exact claim has one of the two.
        control: what is measured where nothing is done (no guidance, untrained, bicubic, shuffled captions), or one
            such value per name; each must fail the criterion. For small claims. Where a value alone could meet it by
            chance, give (value, low, high): then it fails unless all three meet it, as the claim would.
        no_control: why there is none. A small claim has one of the two.
        interval: 95 % interval of the value, needed by a small claim: it holds when all of it meets the criterion, is
            refuted here when all of it misses, and is undecided in between.
        within: the range of what is measured, as (0, 1) for a share.
        equations: labels of the lesson's equations that this claim checks.

    Raises:
        ValueError: the arguments do not make a claim, something leaves ``within``, or another claim of this run has
            the same id.
        VacuousCheck: a control meets the criterion.
        ClaimFailed: an exact or production claim does not hold. A small claim is recorded with its verdict instead.
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
        negative=_controls(negative, "wrong version"),
        no_negative=no_negative,
        control=_controls(control, "doing nothing"),
        no_control=no_control,
        interval=_interval(interval),
        within=tuple(_real(x, "an end of within") for x in within),
    )
    _validate(made)
    run = current()
    if run.claims.get(id, made).statement != statement:
        raise ValueError(f"claim {id!r} was already made in this lesson, about something else; choose another id")
    _require_failing(made)
    run.claims[id] = made
    run.save()
    show(str(made), made._repr_html_())
    publish(id, made.value)
    if made.interval:
        publish(f"{id}-low", made.interval[0])
        publish(f"{id}-high", made.interval[1])
    if made.verdict == FAILS:
        raise ClaimFailed(str(made))


def _require_failing(made: Claim) -> None:
    """Raises VacuousCheck where a control meets the criterion."""
    for name, found in made.controls.items():
        if all(map(made.meets, found)):
            which = "negative control" if name in (made.negative or {}) else "control"
            raise VacuousCheck(
                f"claim {made.id!r} is vacuous: its {which} {name!r} gives {_measured(found)}, also {made.criterion}"
            )


def verdict(id: str, *, holds: str, refuted: str | None = None, undecided: str | None = None) -> None:
    """Choose what the text says of a claim by its verdict, and glue it as ``<id>-said``.

    Args:
        id: a claim that this lesson has made.
        holds, refuted, undecided: a whole sentence, or several, for each verdict. ``{value:.2f}``, ``{low:.2f}`` and
            ``{high:.2f}`` stand for what the claim measured. A small claim needs all three.

    Raises:
        ValueError: no such claim was made, a sentence is missing, or one asks for something else.
    """
    made = current().claims.get(id)
    if made is None:
        raise ValueError(f"verdict(): this lesson has made no claim {id!r} so far")
    sentences = {HOLDS: holds, REFUTED: refuted, UNDECIDED: undecided}
    wanted = (HOLDS,) if made.tier != "small" else tuple(sentences)
    missing = [word for word in wanted if not (sentences[word] or "").strip()]
    if missing:
        raise ValueError(f"verdict() of claim {id!r} needs a sentence for: {', '.join(missing)}")
    low, high = made.interval or (math.nan, math.nan)
    try:
        said = {word: sentences[word].format(value=made.value, low=low, high=high) for word in wanted}
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"verdict() of claim {id!r} has {{value}}, {{low}} and {{high}}, not {error}") from error
    glue(f"{id}-said", said[made.verdict])


def anchor(id: str) -> str:
    """Where a claim's card stands on the page of its lesson."""
    return f"claim-{id}"


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


def _list(controls: Mapping[str, tuple[float, ...]] | None, why_none: str | None) -> str:
    found = "; ".join(f"{name}: {_measured(x)} (fails)" for name, x in (controls or {}).items())
    return found or (f"none: {why_none}" if why_none else "–")


def _controls_of(row: Mapping[str, str]) -> list[str]:
    named = {"negative control": row["negative"], "control": row["control"]}
    return [f"{name} {text}" for name, text in named.items() if text != "–"]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _measured(found: tuple[float, ...]) -> str:
    value, *interval = map(_number, found)
    return f"{value} [{', '.join(interval)}]" if interval else value


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


def _controls(given, alone: str) -> dict[str, tuple[float, ...]] | None:
    if given is None:
        return None
    named = given if isinstance(given, Mapping) else {alone: given}
    controls = {name: _control(x, name) for name, x in named.items()}
    unusable = [name for name, found in controls.items() if any(map(math.isnan, found))]
    if unusable or not controls:
        raise ValueError(f"a control must measure something; NaN or nothing fails anything: {unusable}")
    return controls


def _control(found, name: str) -> tuple[float, ...]:
    if not isinstance(found, tuple):
        return (_real(found, f"control {name!r}"),)
    if len(found) != 3:
        raise ValueError(f"control {name!r} is one number, or a value and the ends of its interval, not {found}")
    value, *interval = found
    return (_real(value, f"control {name!r}"), *_interval(interval))


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
    if claim.tier == "exact" and bool(claim.negative) == bool(claim.no_negative):
        raise ValueError(f"claim {claim.id!r}: an exact claim needs negative=, or no_negative='why', and not both")
    if claim.tier == "small":
        if claim.interval is None:
            raise ValueError(f"claim {claim.id!r}: a small claim needs interval=, its 95 % interval")
        if bool(claim.control) == bool(claim.no_control):
            raise ValueError(f"claim {claim.id!r}: a small claim needs control=, or no_control='why', and not both")
    elif claim.control or claim.no_control:
        raise ValueError(f"claim {claim.id!r}: control= and no_control= are for small claims, negative= is for others")
    low, high = claim.within
    outside = [x for x in itertools.chain(claim.span, *claim.controls.values()) if x < low or x > high]
    if outside:
        raise ValueError(f"claim {claim.id!r}: its measure lies from {_number(low)} to {_number(high)}, not {outside}")
