"""claim(): what holds, what fails, what is refused, and what is recorded."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from minidiff.course import claims, notebook
from minidiff.course.claims import ClaimFailed, VacuousCheck, claim, verdict

SAID = ("a-claim", "One is one.")
EXACT = {"tier": "exact", "source": "somebody, eq. 1", "no_negative": "a definition"}
SMALL = {"tier": "small", "source": "somebody, eq. 1", "no_control": "none was measured"}


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """Each test is a lesson of its own, recorded in ``tmp_path``."""
    monkeypatch.setenv("MINIDIFF_RECORDS", str(tmp_path / "records"))
    notebook.begin("a_lesson")
    return notebook.current()


@pytest.mark.parametrize(
    "value, criterion",
    [
        (1e-9, {"below": 1e-6}),
        (2.0, {"above": 1.0}),
        (1.0, {"between": (1, 2)}),
        (torch.tensor(1.5), {"between": (1, 2)}),
    ],
)
def test_a_claim_that_holds(run, value, criterion):
    claim(*SAID, value, **criterion, **EXACT)
    assert run.claims["a-claim"].verdict == "holds"


@pytest.mark.parametrize(
    "value, criterion",
    [
        (1e-6, {"below": 1e-6}),
        (1.0, {"above": 1.0}),
        (2.1, {"between": (1, 2)}),
        (math.nan, {"below": 1e-6}),
        (math.nan, {"above": 1e-6}),
        (math.nan, {"between": (-math.inf, math.inf)}),
    ],
)
@pytest.mark.parametrize("tier", ["exact", "production"])
def test_a_claim_that_fails_raises_and_is_recorded(run, tmp_path, value, criterion, tier):
    with pytest.raises(ClaimFailed, match="fails"):
        claim(*SAID, value, **criterion, **EXACT | {"tier": tier})
    assert claims.load_records(tmp_path / "records")[0]["claims"][0]["verdict"] == "fails"


@pytest.mark.parametrize("kind", ["negative", "control"])
@pytest.mark.parametrize("control", [1e-8, {"far": 1.0, "near": 1e-8}, torch.tensor(1e-8)])
def test_a_control_that_passes_is_a_vacuous_check(run, kind, control):
    tier = {"tier": "small", "interval": (1e-9, 2e-9)} if kind == "control" else {"tier": "exact"}
    with pytest.raises(VacuousCheck, match=r"vacuous.*1e-08"):
        claim(*SAID, 1e-9, below=1e-6, **{kind: control}, **tier, source="somebody")
    assert not run.claims


def test_a_control_with_an_interval_fails_as_a_claim_would(run):
    small = {"above": 0.0, "interval": (1.0, 3.0), "tier": "small", "source": "somebody"}
    claim(*SAID, 2.0, control={"two halves": (0.1, -0.2, 0.4)}, **small)
    assert run.claims["a-claim"].row()["control"] == "two halves: 0.1 [-0.2, 0.4] (fails)"
    with pytest.raises(VacuousCheck, match=r"0\.1 \[0\.05, 0\.4\]"):
        claim(*SAID, 2.0, control=(0.1, 0.05, 0.4), **small)
    for wrong in ((0.1, 0.2), (0.1, 0.4, 0.2), (0.1, -0.2, math.nan)):
        with pytest.raises(ValueError, match=r"control|interval"):
            claim(*SAID, 2.0, control=wrong, **small)


@pytest.mark.parametrize(
    "criterion, interval, expected",
    [
        ({"above": 0.0}, (1.0, 3.0), "holds"),
        ({"above": 0.0}, (-0.1, 3.0), "undecided"),
        ({"above": 0.0}, (0.0, 3.0), "undecided"),
        ({"above": 2.0}, (1.0, 2.0), "refuted here"),
        ({"above": 0.0}, (math.nan, math.nan), "undecided"),
        ({"below": 1.0}, (1.5, 2.5), "refuted here"),
        ({"below": 4.0}, (1.5, 2.5), "holds"),
        ({"below": 2.0}, (1.5, 2.0), "undecided"),
        ({"between": (1.0, 3.0)}, (1.0, 3.0), "holds"),
        ({"between": (1.9, 2.1)}, (1.0, 3.0), "undecided"),
        ({"between": (2.1, 4.0)}, (1.0, 3.0), "undecided"),
        ({"between": (3.0, 4.0)}, (1.0, 2.9), "refuted here"),
        ({"between": (3.0, 4.0)}, (1.0, 3.0), "undecided"),
        ({"between": (0.0, 1.0)}, (1.5, 2.5), "refuted here"),
    ],
)
def test_small_claims_have_three_verdicts(run, criterion, interval, expected):
    claim(*SAID, 2.0, **criterion, interval=interval, **SMALL)
    assert run.claims["a-claim"].verdict == expected


def test_a_value_counts_beside_its_interval(run):
    claim(*SAID, -1.0, above=0.0, interval=(0.5, 1.0), **SMALL)
    assert run.claims["a-claim"].verdict == "undecided"


@pytest.mark.parametrize(
    "change",
    [
        {"interval": (-0.01, 0.5)},
        {"interval": (0.4, 1.01)},
        {"control": {"x": 1.5}, "no_control": None},
        {"value": -0.1},
    ],
)
def test_what_leaves_its_range_is_refused(run, change):
    given = {"value": 0.5, "below": 0.9, "interval": (0.4, 0.6), "within": (0, 1)} | SMALL
    with pytest.raises(ValueError, match="from 0 to 1"):
        claim(*SAID, **given | change)
    claim(*SAID, **given)
    assert list(run.claims) == ["a-claim"]


@pytest.mark.parametrize("value, word", [(2.0, "Much: 2.0 [1.5, 2.5]."), (-2.0, "Less: -2.0."), (0.1, "Unsure.")])
def test_the_verdict_chooses_a_sentence(monkeypatch, value, word):
    said = {}
    monkeypatch.setattr(claims, "glue", said.__setitem__)
    claim(*SAID, value, above=0.0, interval=(value - 0.5, value + 0.5), **SMALL)
    verdict("a-claim", holds="Much: {value} [{low}, {high}].", refuted="Less: {value:.1f}.", undecided="Unsure.")
    assert said == {"a-claim-said": word}


def test_an_exact_verdict_needs_one_sentence(monkeypatch):
    said = {}
    monkeypatch.setattr(claims, "glue", said.__setitem__)
    claim(*SAID, 0.0, below=1.0, **EXACT)
    verdict("a-claim", holds="So it is.")
    assert said == {"a-claim-said": "So it is."}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "another"}, "no claim 'another'"),
        ({"undecided": None}, "sentence for: undecided"),
        ({"holds": " ", "refuted": ""}, "sentence for: holds, refuted here"),
        ({"refuted": "Only {share:.2f}."}, "share"),
        ({"refuted": "Only {}."}, "{value}"),
    ],
)
def test_verdicts_that_cannot_be_said_are_refused(change, message):
    claim(*SAID, 2.0, above=0.0, interval=(1.0, 3.0), **SMALL)
    with pytest.raises(ValueError, match=message):
        verdict(**{"id": "a-claim", "holds": "Yes.", "refuted": "No.", "undecided": "Unsure."} | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"below": None}, "exactly one"),
        ({"above": 0.0}, "exactly one"),
        ({"below": None, "between": (2, 1)}, "empty"),
        ({"below": math.nan}, "empty"),
        ({"tier": "medium"}, "exact, small, production"),
        ({"tier": "small", "no_control": "why"}, "interval"),
        ({"tier": "small", "interval": (0, 0)}, "control=, or no_control="),
        ({"tier": "small", "interval": (0, 0), "control": 2.0, "no_control": "why"}, "not both"),
        ({"control": 2.0}, "for small claims"),
        ({"no_control": "why"}, "for small claims"),
        ({"interval": (2, 1)}, "interval"),
        ({"no_negative": None}, "negative"),
        ({"negative": 2.0}, "not both"),
        ({"negative": math.nan, "no_negative": None}, "NaN"),
        ({"negative": {}, "no_negative": None}, "control must measure"),
        ({"source": " "}, "source"),
    ],
)
def test_what_is_not_a_claim_is_refused(run, change, message):
    with pytest.raises(ValueError, match=message):
        claim(*SAID, 0.0, **{"below": 1e-6} | EXACT | change)
    assert not run.claims


@pytest.mark.parametrize("value", [np.zeros(2), torch.zeros(3), "many", None])
def test_a_value_is_one_number(value):
    with pytest.raises(ValueError, match="one number"):
        claim(*SAID, value, below=1.0, **EXACT)


@pytest.mark.parametrize("id", ["With-Capitals", "under_score", "trailing-", ""])
def test_ids_are_words_joined_by_hyphens(id):
    with pytest.raises(ValueError, match="hyphens"):
        claim(id, "One is one.", 0.0, below=1.0, **EXACT)


def test_ids_are_unique_within_a_run_but_a_cell_may_run_again(run):
    claim(*SAID, 0.5, below=1.0, **EXACT)
    claim(*SAID, 0.6, below=1.0, **EXACT)
    assert run.claims["a-claim"].value == 0.6
    with pytest.raises(ValueError, match="already made"):
        claim("a-claim", "Two is two.", 0.5, below=1.0, **EXACT)


def test_a_record_has_all_that_the_ledger_shows(tmp_path, capsys):
    small = {"tier": "small", "source": "somebody, eq. 1", "interval": (1.2, 1.8), "control": {"half": 0.5}}
    claim(*SAID, 1.5, above=1.0, equations=["eq-one"], **small)
    notebook.finish()
    (path,) = (tmp_path / "records").iterdir()
    record = json.loads(path.read_text())
    assert path.name == "a_lesson.json" and record["seconds"] >= 0 and record["claims"][0]["equations"] == ["eq-one"]
    assert claims.ledger(claims.load_records(path.parent)) == [
        {
            "lesson": "a_lesson",
            "id": "a-claim",
            "statement": "One is one.",
            "source": "somebody, eq. 1",
            "tier": "small",
            "measured": "1.5",
            "interval": "[1.2, 1.8]",
            "criterion": "above 1",
            "negative": "–",
            "control": "half: 0.5 (fails)",
            "verdict": "holds",
        }
    ]
    printed = capsys.readouterr().out
    assert (
        "claim a-claim: holds. Measured 1.5, 95 % interval [1.2, 1.8], required above 1; control half: 0.5" in printed
    )


def test_a_new_run_forgets_the_old_record(tmp_path):
    claim(*SAID, 0.5, below=1.0, **EXACT)
    notebook.begin("a_lesson")
    notebook.finish()
    assert claims.ledger(claims.load_records(tmp_path / "records")) == []


def test_without_the_variable_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("MINIDIFF_RECORDS")
    claim(*SAID, 0.5, below=1.0, **EXACT)
    assert notebook.current().save() is None and not (tmp_path / "records").exists()


def test_no_records_and_broken_records(tmp_path):
    assert claims.load_records(tmp_path / "nothing") == []
    (tmp_path / "half.json").write_text('{"lesson": "ha')
    with pytest.raises(ValueError, match=r"half\.json"):
        claims.load_records(tmp_path)


def test_the_card_escapes_what_it_shows(run):
    claim("a-claim", "a < b & c", 0.5, below=1.0, **EXACT)
    assert "a &lt; b &amp; c" in run.claims["a-claim"]._repr_html_()


@pytest.mark.parametrize("slug", ["01_first", "First", "a-b", "../x"])
def test_begin_wants_a_slug(slug):
    with pytest.raises(ValueError, match="slug"):
        notebook.begin(slug)


def test_begin_seeds_torch():
    notebook.begin("one")
    first = torch.randn(3)
    notebook.begin("two")
    assert torch.equal(first, torch.randn(3))


def test_glue_tells_the_reader_where_no_book_listens(monkeypatch, capsys):
    notebook.glue("slope", torch.tensor(2.0))
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("MINIDIFF_RECORDS")
    notebook.glue("slope", torch.tensor(2.0))
    assert capsys.readouterr().out == "slope = 2.0\n"


def test_importing_the_course_imports_neither_sphinx_nor_myst_nb():
    packages = {"sphinx", "myst_nb", "jupytext", "ipywidgets"}
    code = f"import sys, minidiff.course; print({packages} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
