"""What a lesson shows where there is no notebook."""

import pytest

from minidiff.course import table


def test_a_table_prints_its_rows(capsys):
    table(["a", "b"], [["1", "2"], ["3", "4"]])
    assert capsys.readouterr().out.split() == ["a", "b", "1", "2", "3", "4"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="needs 2 texts"):
        table(["a", "b"], [["1"]])
