"""Alarms of the gates in test_sources.py: a fault is planted in a copy of one file, and its gate names it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from minidiff.store import data_folder, find
from tools import cards, claimed, commands, equations, lessons, links, measured, prose, run_gates, tested
from tools.lessons import ROOT


@pytest.fixture
def spoilt(tmp_path):
    """Copies one file of the project with one piece of text replaced; says where the copy is."""

    def copy(path: str, right: str, wrong: str) -> Path:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert right in text, f"{path} is written differently now: plant the fault in its new form"
        here = tmp_path / path
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_text(text.replace(right, wrong, 1), encoding="utf-8")
        return here

    return copy


FORWARD, SAMPLERS, CLASSIFIER = "01_forward_and_reverse", "02_samplers", "03_classifier_guidance"
VALUE = "    composition_error(lambda b: b),\n"
CONTROL = "composition_error(lambda b: b**2)"
LESSON_FAULTS = {
    "value": (measured.unmeasured, FORWARD, VALUE, "    3e-16,\n", "value 3e-16 is typed"),
    "value by a function": (measured.unmeasured, FORWARD, VALUE, "    (lambda b: 3e-16)(1),\n", "is typed"),
    "value from arithmetic": (measured.unmeasured, FORWARD, VALUE, "    float(2.0**-52 * 3),\n", "is typed"),
    "negative": (measured.unmeasured, FORWARD, CONTROL, "1e9", "negative 1000000000.0 is typed"),
    "interval": (measured.unmeasured, FORWARD, "    interval=lost_interval,", "    interval=(0.0, 0.01),", "is typed"),
    "control": (measured.unmeasured, SAMPLERS, "control=shuffled[25]", "control=(0.0, -0.1, 0.1)", "is typed"),
    "loosened": (claimed.criteria, FORWARD, "below=1e-6", "below=1e-3", "accepts 'below 0.001'"),
    "loosened though it has a reason": (claimed.criteria, SAMPLERS, "below=0.5,", "below=5,", "'below 0.5' there"),
    "an order's range widened": (claimed.criteria, CLASSIFIER, "(1.9, 2.1)", "(0.9, 3.1)", "accepts 'between"),
    "source": (claimed.sources, FORWARD, "Ho et al. 2020, equation 4", "Ho et al. 2031, equation 4", "not in book/"),
    "source without a paper": (claimed.sources, FORWARD, "Ho et al. 2020, equation 4", "nobody", "neither a paper"),
    "citation": (claimed.sources, CLASSIFIER, "`dhariwal2021adm`", "`dhariwal2012adm`", "'dhariwal2012adm' is not in"),
    "typed percentage": (prose.typed, CLASSIFIER, "## Production\n", "## Production\n\nIt wins in 62 %.\n", "62 % is"),
    "typed decimal": (prose.typed, CLASSIFIER, "## Production\n", "## Production\n\nThe gain is 0.37.\n", "0.37 is"),
    "typed caption": (
        prose.typed,
        FORWARD,
        "    caption: |\n",
        "    caption: |\n      Off by 0.37.\n",
        "0.37 is typed",
    ),
    "role in a formula": (
        prose.hidden_in_formulas,
        CLASSIFIER,
        "## Production\n",
        "## Production\n\nAt $s = {glue:text}`mine`$ it wins, at $s$ {glue:text}`mine` as well.\n",
        "{glue:text}`mine` stands in a formula",
    ),
    "alt text": (prose.idle_alt_text, FORWARD, "    alt: ", "    alt: figure # ", "the alt text 'figure' does not"),
}


@pytest.mark.parametrize("gate, stem, right, wrong, message", LESSON_FAULTS.values(), ids=LESSON_FAULTS)
def test_a_fault_in_a_lesson_is_named(spoilt, gate, stem, right, wrong, message):
    found = list(gate(lessons.read(spoilt(f"lessons/{stem}.md", right, wrong))))
    assert found and all(message in line for line in found), found


def test_a_name_for_a_typed_number_is_followed(spoilt):
    path = spoilt(f"lessons/{FORWARD}.md", VALUE, "    found,\n")
    path.write_text(
        path.read_text().replace('claim(\n    "forward-composes"', 'found = 3e-16\nclaim(\n    "forward-composes"')
    )
    assert "value found is typed" in "\n".join(measured.unmeasured(lessons.read(path)))


def test_a_reason_without_its_claim_is_named(monkeypatch):
    monkeypatch.setitem(claimed.CRITERIA, "never-made", ("below 1", "no reason"))
    assert "no lesson makes the claim 'never-made'" in "\n".join(claimed.unused_criteria([]))


def test_a_picture_of_the_readme_is_called_figure(spoilt):
    page = spoilt("README.md", "![Sixteen columns", "![figure](a.png)\n![Sixteen columns")
    assert "'figure'" in "\n".join(prose.idle_pictures(page))


LOOSE = """
expect(got, right, say, {option}){comment}
"""


@pytest.mark.parametrize("option", ["rtol=1e-3", "atol=2e-6", "rtol=0, atol=1e-3"])
def test_a_loose_case_is_named(tmp_path, option):
    path = tmp_path / "checks.py"
    path.write_text(LOOSE.format(option=option, comment=""))
    assert "say why" in "".join(tested.loose(path))
    path.write_text(LOOSE.format(option=option, comment="  # float32 knows no better"))
    assert list(tested.loose(path)) == []


def test_a_real_case_loosened_is_named(spoilt):
    right = "expect(answer(t, s), (ratio - 1) / 2, say, wrong)"
    path = spoilt(f"minidiff/course/checks/l{FORWARD}.py", right, right[:-1] + ", rtol=1e-3)")
    assert "rtol 0.001 is more than" in "".join(tested.loose(path))
    path = spoilt(f"minidiff/course/checks/l{FORWARD}.py", right, "assert abs(answer(t, s) - (ratio - 1) / 2) < 1e-3")
    assert "the bound 0.001 is more than" in "".join(tested.loose(path))


@pytest.mark.parametrize(
    "skip",
    [
        '@pytest.mark.skip(reason="needs a look")',
        '@pytest.mark.skipif(sys.platform == "linux", reason="grading needs Linux or macOS")',
        '@pytest.mark.xfail(reason="known")',
    ],
)
def test_a_skip_that_is_not_on_the_list_is_named(spoilt, skip):
    path = spoilt("tests/course/test_book.py", "\ndef test_", f"\n{skip}\ndef test_")
    found = list(tested.skipped(path, path.parents[2]))
    assert len(found) == 1 and "is not among the skips" in found[0]


def test_a_skip_inside_a_test_is_named(spoilt):
    path = spoilt("tests/test_pixels.py", "\n    assert", '\n    pytest.skip("later")\n    assert')
    assert "pytest.skip('later') is not among" in "".join(tested.skipped(path, path.parents[1]))
    path = spoilt("tests/test_pixels.py", "\n    assert", '\n    pytest.importorskip("minidif")\n    assert')
    assert "pytest.importorskip('minidif') is not among" in "".join(tested.skipped(path, path.parents[1]))


def test_a_file_without_a_test_is_named(spoilt):
    path = spoilt("tests/test_random.py", "def test_", "def check_")
    path.write_text(path.read_text().replace("def test_", "def check_"))
    assert "no function in this file is a test" in "".join(tested.empty(path))
    assert "tests stand in files test_*.py" in "".join(tested.empty(_named(path, "def test_it(): ...")))


def _named(path: Path, text: str) -> Path:
    other = path.with_name("helpers_of_it.py")
    other.write_text(text)
    return other


@pytest.mark.parametrize("name", [gate.name for gate in run_gates.GATES])
def test_a_gate_that_is_taken_off_the_list_is_named(name):
    left = [gate for gate in run_gates.GATES if gate.name != name]
    assert f"the gate '{name}' does not run" in "".join(tested.missing_gates(left))


def test_a_gate_that_runs_less_is_named():
    alarms = next(gate for gate in run_gates.GATES if gate.name == "alarms")
    less = dataclasses.replace(alarms, commands=tuple(command[:-1] for command in alarms.commands))
    found = "".join(tested.missing_gates([less if gate is alarms else gate for gate in run_gates.GATES]))
    assert "the gate 'alarms' does not run 'tests/gates/test_planted.py'" in found and "no gate runs" in found


README_FAULTS = {
    "option": ("--scale 3   #", "--scael 3   #", "digits has no option --scael"),
    "what it is told": ("--label 7", "--labels 7", "digits has no option --labels"),
    "value": ("evaluate digits --scale 1", "evaluate digits --scale one", "'one' is not a valid float"),
    "command": ("minidiff bench  ", "minidiff bunch  ", "No such command 'bunch'"),
    "checkpoint": ("--upsample glide-up64", "--upsample glide-up46", "no preset 'glide-up46'"),
    "recipe": ("minidiff train digits  ", "minidiff train digit  ", "no recipe 'digit'"),
    "setting": ("data.name=shards", "data.names=shards", "unknown key"),
    "preset": ("download adm-imagenet64", "download adm-imagenet46", "no preset 'adm-imagenet46'"),
    "target": ("make book   #", "make books   #", "no target 'books'"),
    "launcher": ("--nproc-per-node 8", "--nprocs-per-node 8", "unrecognized arguments"),
    "argument": ("shards/train --size 64", "--size 64", "Missing argument 'OUT'"),
}


@pytest.mark.parametrize("right, wrong, message", README_FAULTS.values(), ids=README_FAULTS)
def test_a_command_that_cannot_run_is_named(spoilt, right, wrong, message):
    page = spoilt("README.md", right, wrong)
    found = [commands.wrong(words) for _, words in commands.commands(page.read_text()) if words[0] in commands.PROGRAMS]
    assert len([each for each in found if each]) == 1 and message in "".join(found)


@pytest.mark.parametrize(
    "link, message",
    [
        ("[status](book/stauts.md)", "leads nowhere"),
        ("[the lessons](lessons/)", ""),
        ("[more](CONTRIBUTING.md#a-lessen)", "names no heading of CONTRIBUTING.md"),
        ("[more](CONTRIBUTING.md#a-lesson)", ""),
        ("[paper](https://arxiv/abs/2006.11239)", "is no address"),
        ("[paper](htps://arxiv.org/abs/2006.11239)", "leads nowhere"),
        ("Made by `tools/covers.py`.", "there is no 'tools/covers.py'"),
    ],
)
def test_a_dead_link_is_named(tmp_path, link, message):
    for name in ("CONTRIBUTING.md", "lessons", "book"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").write_text(f"{link}\n\n`[not](a link)`\n")
    found = "".join(links.dead(tmp_path / "README.md"))
    assert message in found and bool(message) == bool(found)


def test_a_dead_link_of_the_readme_itself_is_named(spoilt):
    page = spoilt("README.md", "(book/_static/cover.png)", "(book/_static/covers.png)")
    assert "the link 'book/_static/covers.png' leads nowhere" in "".join(links.dead(page))


@pytest.fixture
def labelled(tmp_path):
    """A copy of the package with one docstring's label exchanged, beside the lessons."""

    def copy(module: str, right: str, wrong: str) -> Path:
        shutil.copytree(ROOT / "minidiff", tmp_path / "minidiff", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("lessons", "book", "_toc.yml", "_config.yml"):
            (tmp_path / name).symlink_to(ROOT / name)
        path = tmp_path / f"minidiff/{module}.py"
        assert path.read_text().count(right), (
            "the docstring is written differently now: plant the fault in its new form"
        )
        path.write_text(path.read_text().replace(right, wrong, 1))
        return tmp_path

    return copy


def test_a_wrong_label_in_a_docstring_is_named(labelled):
    """The label is that of another equation of the same lesson, which the function has nothing to do with."""
    root = labelled("sampler", "``eq-ancestral``", "``eq-ddim-rotation``")
    found = "\n".join(equations.mislabelled(lessons.read_all(root), root))
    assert "sampler.ancestral names 'eq-ddim-rotation'" in found and "does not name 'eq-ancestral'" in found


def test_a_label_that_is_wrong_in_the_list_too_is_named(labelled, monkeypatch):
    monkeypatch.setitem(equations.EQUATIONS, "eq-truncated", ("guidance.rescaled",))
    monkeypatch.delitem(equations.EQUATIONS, "eq-rescaled")
    root = labelled("guidance", "``eq-rescaled``", "``eq-truncated``")
    assert "but 09_cascades.md does not mention rescaled" in "\n".join(
        equations.mislabelled(lessons.read_all(root), root)
    )


@pytest.fixture
def published(tmp_path):
    """A copy of a small checkpoint whose card, or weights, are changed by a function of them."""

    def copy(name: str, card=lambda card: None, weights=lambda content: content) -> Path:
        folder = Path(shutil.copytree(data_folder() / "checkpoints" / name, tmp_path / name))
        text = json.loads((folder / "card.json").read_text())
        card(text)
        (folder / "card.json").write_text(json.dumps(text))
        file = folder / "model.safetensors"
        file.write_bytes(weights(file.read_bytes()))
        return folder

    return copy


def _flipped(content: bytes) -> bytes:
    return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]


def test_a_flipped_byte_of_a_checkpoint_is_named_and_not_loaded(published):
    folder = published("digits-weak", weights=_flipped)
    assert "model.safetensors is not the file whose SHA-256 is on the card" in "".join(cards.changed(folder))
    with pytest.raises(ValueError, match="is not the file that its card describes"):
        find(str(folder))


def test_a_file_that_is_not_on_the_card_is_named(published):
    folder = published("digits-weak", card=lambda card: card.pop("sha256"))
    assert "model.safetensors is not on the card" in "".join(cards.changed(folder))
    assert find(str(folder))  # what others published before cards had hashes


@pytest.mark.parametrize(
    "name, value", [("parameters", 828_000), ("steps", 9000), ("seed", 3), ("megabytes", 1.0), ("name", "digits")]
)
def test_a_fact_of_a_card_that_is_typed_is_named(published, name, value):
    folder = published("digits-weak", card=lambda card: card.update({name: value}))
    assert f"not {value!r}" in "".join(cards.untrue(folder))


@pytest.mark.parametrize("factor, seconds", [(0.98, math.inf), (0.7, 0)], ids=["all measured again", "a few batches"])
def test_a_metric_that_is_typed_by_hand_is_named(published, factor, seconds):
    falsify = lambda card: card["metrics"].update(heldout_loss=card["metrics"]["heldout_loss"] * factor)
    true = data_folder() / "checkpoints/digits-classifier"
    assert list(cards.wrong_metrics(true, seconds)) == []
    found = "".join(cards.wrong_metrics(published("digits-classifier", card=falsify), seconds))
    assert "heldout_loss is" in found and "the card says" in found
