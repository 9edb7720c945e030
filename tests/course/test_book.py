"""What a grading writes: whole names, nothing that a terminal or spreadsheet acts on, and grades that survive."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from minidiff.course.grading.book import GradeBook, name_of, printable, to_csv


def unread(name, message=""):
    return {"handin": name, "exercises": [], "status": "error", "message": message}


def cells(*results):
    return list(csv.reader(to_csv(list(results)).splitlines()))[1:]


@pytest.mark.parametrize("sign", "=+-@\uff1d\uff0b\uff0d\uff20")
def test_no_cell_is_a_formula(sign):
    ((name, *_, message),) = cells(unread(sign + "bob.py", sign + "cmd|' /C calc'!A0\n\x00second"))
    assert name == f"'{sign}bob.py" and message == f"'{sign}cmd|' /C calc'!A0 second"


def test_different_hand_ins_have_different_names():
    names = ["a b.py", "a\tb.py", "a\nb.py", "a\\nb.py", "a\\\\nb.py", "=a.py", "'=a.py", "\udcff.py", "\\udcff.py"]
    names += [f"{'x' * 2000}{i}.py" for i in range(2)]
    written = [row[0] for row in cells(*map(unread, names))]
    assert len(set(written)) == len(names) and len(written[-1]) == 2004


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2K\ra", "\u202egnp", "\x9b2J", "\udcff", "\x7f"])
def test_nothing_that_a_terminal_acts_on(text):
    assert printable(text).isascii() and printable(text).isprintable()
    assert printable("Zoë 山田") == "Zoë 山田" and name_of("C:\\x") == "C:\\\\x"


def test_a_message_is_one_printable_line():
    ((*_, message),) = cells(unread("a.py", "first\nsecond \x1b[31m" + "x" * 1000))
    assert message.startswith("first second [31m") and message.isprintable() and len(message) == 300


def test_files_that_cannot_be_written_are_refused_at_once(tmp_path):
    hand_in = tmp_path / "a.py"
    hand_in.write_text("x = 1")
    (tmp_path / "link.csv").symlink_to(hand_in)
    for name in ("a.py", "nowhere/../a.py", "link.csv"):
        with pytest.raises(ValueError, match="would overwrite the hand-in"):
            GradeBook(tmp_path / name, None, [hand_in])
    with pytest.raises(ValueError, match="are the same one"):
        GradeBook(tmp_path / "grades", tmp_path / "x/../grades", [hand_in])
    with pytest.raises(ValueError, match="is no file that could be written"):
        GradeBook(tmp_path, None, [hand_in])
    with pytest.raises(ValueError, match="cannot be written"):
        GradeBook(None, hand_in / "grades.json", [hand_in])
    assert hand_in.read_text() == "x = 1" and sorted(os.listdir(tmp_path)) == ["a.py", "link.csv"]


@pytest.mark.skipif(sys.platform == "win32", reason="grading needs Linux or macOS")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_what_was_graded_is_never_lost(tmp_path, end):
    """With a file name of no characters and a reader that has gone away, stopped in the middle of the second."""
    folder = tmp_path / "hand-ins"
    folder.mkdir()
    try:
        (folder / os.fsdecode(b"a\xff.py")).write_text("x = 1")
    except OSError:
        (folder / "a.py").write_text("x = 1")  # a file system that has only names of characters
    (folder / "forward_and_reverse.py").write_text("while True: pass")
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; sys.path[:] = {sys.path!r}; from minidiff.cli import main; main(sys.argv[1:])"
    arguments = [folder, "--csv", tmp_path / "new/grades.csv", "--time-limit", "600"]
    grader = subprocess.Popen(
        [sys.executable, "-c", code, "grade", *map(str, arguments)],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    os.close(write)
    written = tmp_path / "new/grades.csv"
    limit = time.monotonic() + 300
    while not written.exists() and time.monotonic() < limit and grader.poll() is None:
        time.sleep(0.1)
    time.sleep(2)
    assert grader.poll() is None, grader.stderr.read()
    grader.send_signal(end)
    said = grader.communicate(timeout=60)[1].decode()
    rows = list(csv.reader(written.open()))
    assert len(rows) == 2 and rows[1][4] == "error" and rows[1][0].startswith(name_of(str(folder)))
    assert grader.returncode == (130 if end == signal.SIGINT else -end)
    assert end != signal.SIGINT or "what was graded until now is in" in said
    assert list(tmp_path.rglob("*.json")) == []
