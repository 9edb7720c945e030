"""The gates over the committed checkpoints; their planted faults are in test_planted.py."""

from __future__ import annotations

import os
import time

import pytest

from tools import cards


@pytest.mark.parametrize("gate", [cards.changed, cards.untrue], ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("folder", cards.folders(), ids=lambda folder: folder.name)
def test_files_and_facts_are_those_of_the_card(folder, gate):
    assert list(gate(folder)) == []


def test_metrics_of_a_model_drawn_at_random_are_measured_again():
    """MINIDIFF_DRAW=SEED draws the same again; the list of gates prints it."""
    seed = int(os.environ.get("MINIDIFF_DRAW", time.time_ns()))
    folder = cards.drawn(seed)
    print(f"MINIDIFF_DRAW={seed} draws {folder.name}")
    assert list(cards.wrong_metrics(folder)) == [], f"MINIDIFF_DRAW={seed}"
