"""The benchmark compares what it says it compares, and its report holds together."""

import importlib
import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch
from click.testing import CliRunner

from minidiff import bench
from minidiff.cli import main
from minidiff.models.unet import UNet, UNetConfig


def parameters(network) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_networks_are_of_equal_size():
    with torch.device("meta"):
        assert parameters(bench.Diffusers()) == pytest.approx(parameters(UNet(bench.OURS)), rel=0.02)


@pytest.fixture
def small(monkeypatch):
    tiny = UNetConfig(size=8, channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), heads=2, groups=8)
    monkeypatch.setattr(bench, "OURS", tiny)
    monkeypatch.setattr(bench, "THEIRS", (16, 32))
    monkeypatch.setattr(bench, "SIZE", 8)


def test_plain_choices_change_the_speed_not_the_function(small):
    fast, plain = (bench.Race(bench.contestants()[i], 2, torch.device("cpu")) for i in (1, 2))
    for race in (fast, plain):
        race.network.load_state_dict({k: torch.full_like(v, 0.02) for k, v in race.network.state_dict().items()})
    torch.testing.assert_close(fast.forward(), plain.forward())
    assert fast.network.input_blocks[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert plain.network.memory_format is torch.contiguous_format


def test_memory_is_measured_on_windows_too(monkeypatch):
    """There is no ``resource`` there; on Linux ``psutil`` says what a process has now, about which its peak is."""
    here, process = bench._most_of_this_process(), psutil.Process()
    assert 0.9 * process.memory_info().rss < here < 10 * process.memory_info().rss
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=7)))
    assert importlib.reload(bench)._most_of_this_process() == 7, "the module is read without it"


def test_the_report(small, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "peak_memory", lambda index, batch, compiled: 10**6 * (index + 1))
    result = CliRunner().invoke(main, ["bench", "--batch", "2", "--rounds", "2", "--json", str(tmp_path / "b.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "b.json").read_text())
    assert len(report["rows"]) == 2 * len(bench.contestants())
    for row in report["rows"]:
        middle, low, high = row["ratio"]
        assert low <= middle <= high and row["name"] in result.output
    ours = [row for row in report["rows"] if row["name"] == bench.contestants()[0].name]
    assert [row["ratio"] for row in ours] == [[1, 1, 1]] * 2, "ours against itself"


def test_the_ceiling_is_the_largest_rate_of_several_shapes(small, monkeypatch):
    """By a clock that says how long each shape takes, which changes from look to look."""
    top = bench.Ceiling(False, 2, torch.device("cpu"))
    operations = [cost for _, _, cost in top.shapes]
    assert len(operations) == 4 and operations[0] == 2 * 9 * 16**2 * 8**2 * 2
    now, took = [0.0], iter([1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0])
    ticks = iter(range(100))

    def clock():
        now[0] += next(took) if next(ticks) % 2 else 0.0
        return now[0]

    monkeypatch.setattr(bench.time, "perf_counter", clock)
    assert top.measure() == pytest.approx(max(operations))
    assert top.measure() == pytest.approx(max(*operations, operations[1] / 0.1))
    assert top.measure() == top.best, "a slower look changes nothing"


def test_the_ceiling_is_looked_at_in_every_turn(small, monkeypatch):
    looks = []
    monkeypatch.setattr(bench, "peak_memory", lambda index, batch, compiled: 1)
    monkeypatch.setattr(bench.Ceiling, "measure", lambda self: looks.append(1) or setattr(self, "best", 1.0))
    bench.bench(2, 3)
    assert len(looks) == 2 * 3 * len(bench.contestants()) * 2, "tasks, rounds, contestants, precisions"
