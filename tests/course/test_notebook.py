"""What a lesson shows where there is no notebook."""

import pytest

from minidiff.course import notebook, table


def test_a_table_prints_its_rows(capsys):
    table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert capsys.readouterr().out.split() == ["a", "b", "1", "2", "3", "4"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="needs 2 texts"):
        table(["a", "b"], [["1"]])


def test_a_number_and_its_interval_stay_on_one_line(monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "show", lambda text, rich: shown.append(rich))
    table(["what", "how much"], [["as told in many words", "-0.12 [-0.20, -0.04]"]])
    assert '<td style="white-space: nowrap">-0.12 [-0.20, -0.04]</td>' in shown[0]
    assert "<td>as told in many words</td>" in shown[0]
