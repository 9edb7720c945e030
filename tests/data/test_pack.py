from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import Dataset

from minidiff.cli import main
from minidiff.cli.data import data as command
from minidiff.data.images import ImageFolder, to_tensor
from minidiff.data.pack import pack, picture, read_captions
from minidiff.data.shards import Shards
from minidiff.data.writer import ShardWriter

pytest.importorskip("webdataset")
DATA = os.environ.get("MINIDIFF_DATA")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".tar", ".json")}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive}


@pytest.fixture
def run():
    if "data" not in main.commands:
        main.add_command(command)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


class Numbers(Dataset):
    """Grey pictures without names or classes; some cannot be had."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == 3:
            raise OSError("a bad sector")
        return torch.full((1, 2, 2), i / 127.5 - 1), i % 3


def test_files_go_in_as_they_are(folder, tmp_path):
    source = ImageFolder(folder)
    index = pack(source, tmp_path / "out", per_shard=10, seed=None)
    assert [s["samples"] for s in index["shards"]] == [10, 10, 4] and index["samples"] == 24
    assert index["classes"] == ["cat", "dog"] and index["complete"] and index["skipped"] == 0
    assert index == json.loads((tmp_path / "out/index.json").read_text())
    first = members(tmp_path / "out/000000.tar")
    assert list(first)[:4] == ["000000000.cls", "000000000.png", "000000001.cls", "000000001.jpg"]
    for i in range(10):
        assert first[f"{i:09d}.{('png', 'jpg')[i % 2]}"] == source.read(i) and first[f"{i:09d}.cls"] == b"0"
    last = Shards(tmp_path / "out")[23]  # a BMP, encoded without loss
    assert "000000023.png" in members(tmp_path / "out/000002.tar") and torch.equal(last[0], source[23][0])


def test_the_bytes_are_the_same_every_time(folder, tmp_path):
    source = ImageFolder(folder, size=6)
    pack(source, tmp_path / "a", per_shard=7)
    pack(source, tmp_path / "b", per_shard=7, workers=2)
    pack(source, tmp_path / "c", per_shard=7, seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")
    a = Shards(tmp_path / "a")
    mixed = [int(a.samples.key(i)) for i in range(24)]
    assert sorted(mixed) == list(range(24)) != mixed  # shuffled, so that a shard holds all classes
    for i, j in enumerate(mixed):
        assert (a[i][0] - source[j][0]).abs().max() < 1 / 127.5 and a[i][1] == source[j][1]


def test_broken_images_are_skipped_counted_and_named(folder, tmp_path, picture_file):
    (folder / "cat/003.jpeg").write_bytes(picture_file(3, "JPEG")[:-200])
    (folder / "dog/020.png").write_bytes(b"")
    for size in (None, 4):
        out = tmp_path / f"out-{size}"
        index = pack(ImageFolder(folder, size), out, per_shard=10, seed=None)
        assert index["skipped"] == 2 and [s["samples"] for s in index["shards"]] == [9, 10, 3]
        assert [s["skipped"] for s in index["shards"]] == [["cat/003.jpeg"], [], ["dog/020.png"]]
        assert Shards(out).check() == []


def test_any_data_set_of_images(tmp_path):
    index = pack(Numbers(7), tmp_path, per_shard=4, seed=None, workers=1)
    assert index["samples"] == 6 and index["shards"][0]["skipped"] == ["3"] and "classes" not in index
    data = Shards(tmp_path)
    assert data.classes == ("0", "1", "2") and data.labels.tolist() == [0, 1, 2, 1, 2, 0]
    assert torch.allclose(data[4][0], torch.full((3, 2, 2), 5 / 127.5 - 1))


def test_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision").datasets
    source = datasets.FakeData(5, (3, 8, 8), 4, to_tensor)
    pack(source, tmp_path, seed=None)
    assert torch.equal(Shards(tmp_path)[3][0], source[3][0]) and Shards(tmp_path)[3][1] == int(source[3][1])


def test_quality_makes_jpeg(folder, tmp_path):
    pack(ImageFolder(folder), tmp_path / "out", quality=50)
    data = Shards(tmp_path / "out")
    assert set(data.samples.suffixes) == {"jpg", "cls"} and len(data) == 24


def test_pictures_and_tensors_are_inverse():
    pixels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    for image in (Image.fromarray(pixels.numpy()), Image.fromarray(torch.stack([pixels] * 3, 2).numpy())):
        assert picture(to_tensor(image)).tobytes() == image.convert("RGB").tobytes()
    assert picture(to_tensor(image)[:1]).tobytes() == bytes(range(256))


class Killed(ImageFolder):
    """Kills its process when the 18th picture is read."""

    def read(self, i: int) -> bytes:
        if i == 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def test_a_killed_run_goes_on_where_it_stood(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=pack, args=(Killed(folder), out, 5, None, None, None))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(contents(out)) == ["000000.tar", "000001.tar", "000002.tar", "index.json"]
    assert len(list(out.glob(".*.tmp"))) == 1
    with pytest.raises(ValueError, match="not finished"):
        Shards(out)
    (out / "000001.tar").unlink()  # lost meanwhile
    read = []
    monkeypatch.setattr(ImageFolder, "read", lambda self, i, old=ImageFolder.read: read.append(i) or old(self, i))
    pack(ImageFolder(folder), out, per_shard=5, seed=None)
    assert read == [*range(5, 10), *range(15, 24)] and not list(out.glob(".*.tmp"))
    pack(ImageFolder(folder), tmp_path / "whole", per_shard=5, seed=None)
    assert contents(out) == contents(tmp_path / "whole")
    del read[:]
    pack(ImageFolder(folder), out, per_shard=5, seed=None)
    assert read == [] and contents(out) == contents(tmp_path / "whole")


def test_an_error_leaves_no_half_shard(tmp_path):
    writer = ShardWriter(tmp_path, {})
    with pytest.raises(RuntimeError), writer.shard("0.tar") as (add, _):
        add("a", {"txt": b"1"})
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]


def test_a_run_killed_between_a_shard_and_its_index_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("minidiff.data.writer.read_table", _interrupted)
        pack(ImageFolder(folder), out, per_shard=10)
    assert sorted(contents(out)) == ["000000.tar", "index.json"]
    pack(ImageFolder(folder), out, per_shard=10)
    pack(ImageFolder(folder), tmp_path / "whole", per_shard=10)
    assert contents(out) == contents(tmp_path / "whole")


def _interrupted(path: Path) -> None:
    raise KeyboardInterrupt


def test_another_job_in_the_same_folder_is_refused(folder, tmp_path):
    source, out = ImageFolder(folder), tmp_path / "out"
    pack(source, out, per_shard=10)
    before = contents(out)
    for arguments, different in (
        ({"per_shard": 11}, "per_shard"),
        ({"per_shard": 10, "seed": None}, "seed"),
        ({"per_shard": 10, "quality": 90}, "quality"),
        ({"per_shard": 10, "captions": {"cat/000.png": "a cat"}}, "captions"),
    ):
        with pytest.raises(ValueError, match=f"another job .different: {different}."):
            pack(source, out, **arguments)
    with pytest.raises(ValueError, match="images, source"):
        pack(ImageFolder(folder, within="cat"), out, per_shard=10)
    with pytest.raises(ValueError, match="different: size"):
        pack(ImageFolder(folder, size=4), out, per_shard=10)
    assert contents(out) == before
    for name in ("foreign.tar", "index.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("{}")
        with pytest.raises(ValueError, match="not written here"):
            pack(source, tmp_path / name)


def test_without_webdataset(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"pip install 'minidiff\[train\]'"):
        pack(ImageFolder(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_refused(folder, tmp_path):
    source = ImageFolder(folder)
    for arguments, message in (
        ({"per_shard": 0}, "per_shard must be a whole number >= 1, got 0"),
        ({"quality": 101}, "quality = 101"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(source, tmp_path / "out", **arguments)
    with pytest.raises(ValueError, match="mirror"):
        pack(ImageFolder(folder, mirror=True), tmp_path / "out")
    with pytest.raises(ValueError, match="names of images"):
        pack(Numbers(2), tmp_path / "out", captions={})
    with pytest.raises(ValueError, match=r"no caption goes with an image: .*horse.*cat/000.png"):
        pack(source, tmp_path / "none", captions={"horse": "a horse"})


CAPTIONS = {"cat/000.png": 'a cat, "dark"', "dog/012.png": "un chïen"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_captions(folder, tmp_path, kind):
    path = tmp_path / f"metadata.{kind}"
    rows = [{"file_name": name, "text": text, "width": "8"} for name, text in CAPTIONS.items()]
    if kind == "csv":
        path.write_text('file_name,text,width\ncat/000.png,"a cat, ""dark""",8\ndog/012.png,un chïen,8\n')
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_captions(path) == CAPTIONS
    index = pack(ImageFolder(folder), tmp_path / "out", captions=read_captions(path), seed=None)
    assert index["samples"] == 2 and index["skipped"] == 22
    data = Shards(tmp_path / "out", targets=("cls", "txt"))
    assert [data[i][1:] for i in range(2)] == [(0, 'a cat, "dark"'), (1, "un chïen")]


def test_bad_captions_are_refused(tmp_path):
    for name, text, message in (
        ("a.txt", "", "a .csv or .jsonl file"),
        ("a.csv", "name,caption\nx,y\n", "row 1"),
        ("b.csv", "file_name,text\nx,y\nz\n", "row 2"),
        ("a.jsonl", '{"file_name": "x", "text": "y"}\nnonsense\n', "row 2"),
        ("b.jsonl", "[1]\n", "row 1"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_captions(tmp_path / name)


def test_command_line(folder, tmp_path, run, picture_file):
    (folder / "dog/020.png").write_bytes(b"")
    result = run("data", "pack", folder, tmp_path / "out", "--size", 4, "--per-shard", 10, "--quiet")
    assert result.exit_code == 0, result.output
    assert "23 samples in 3 shards" in result.output and "1 skipped (dog/020.png)" in result.output
    result = run("data", "info", tmp_path / "out", "--check")
    assert result.exit_code == 0, result.output
    for line in ("23 samples in 3 shards", "members: cls 23, png 23", "classes: 2 (cat, dog)", "broken: 0"):
        assert line in result.output
    raw = bytearray((tmp_path / "out/000001.tar").read_bytes())
    raw[raw.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "out/000001.tar").write_bytes(raw)
    result = run("data", "info", tmp_path / "out", "--check")
    assert "changed since it was written: 000001.tar" in result.output and "broken: 1" in result.output
    assert "--split train" in run("data", "pack", tmp_path / "out", tmp_path / "x", "--split", "train").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "nowhere/x", "out"], "does not exist"),
        (["pack", "CIFAR", "out"], "nearest names: CIFAR10"),
        (["pack", "packed", "out"], "holds shards already"),
        (["pack", ".", "out", "--captions", "none.csv"], "none.csv"),
        (["pack", ".", "out", "--size", "0"], "--size"),
        (["embed", "packed", "cifar", "out"], "no checkpoint, run or preset 'cifar': did you mean 'cifar16'"),
        (["info", "nowhere.tar"], "1 of 1 shards do not exist"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    pack(ImageFolder(folder), folder / "packed")
    result = run("data", *arguments)
    assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["pack", "embed", "info"])
def test_help_has_examples(name, run):
    assert "Examples:" in run("data", name, "--help").output


@pytest.mark.skipif(DATA is None, reason="MINIDIFF_DATA names the folder with cifar10.zip")
def test_cifar10(tmp_path, run):
    archive = Path(DATA or "") / "cifar10.zip"
    source = ImageFolder(archive, within="test/ship")
    source.names, source.labels = source.names[:200], source.labels[:200]
    index = pack(source, tmp_path / "out", per_shard=64)
    assert index["samples"] == 200 and index["skipped"] == 0
    data = Shards(tmp_path / "out")
    assert all(torch.equal(data[i][0], source[int(data.samples.key(i))][0]) for i in range(0, 200, 11))


def test_a_caption_of_200_kilobytes(folder, tmp_path):
    (tmp_path / "metadata.csv").write_text(f"file_name,text\ncat/000.png,{'long ' * 40_000}\n")
    assert len(read_captions(tmp_path / "metadata.csv")["cat/000.png"]) == 200_000
    (tmp_path / "latin.csv").write_bytes("file_name,text\ncat/000.png,Käfer\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv, after row 0: .*save it as UTF-8"):
        read_captions(tmp_path / "latin.csv")


def test_captions_go_by_the_name_however_it_is_written(folder, tmp_path):
    """Wrong names leave nothing behind, so the corrected command runs."""
    with pytest.raises(ValueError, match=r"no caption goes with an image: .*'pictures/cat/000.png'.*'cat/000.png'"):
        pack(ImageFolder(folder), tmp_path / "out", captions={"pictures/cat/000.png": "a cat"})
    index = pack(ImageFolder(folder), tmp_path / "out", captions={"./cat\\000.png": "a cat"})
    assert index["samples"] == 1 and index["complete"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a.png,a ring, red", "row 1: more cells than columns; a text with a comma is quoted"),
        ("a.png,a ring\na.png,a box", "row 2: another caption of a.png; one is accepted"),
        ('a.png,a ring\nb.png,"a box\nc.png,a disc', "after row 1: unexpected end of data"),
    ],
)
def test_captions_that_would_be_cut_replaced_or_swallowed_are_refused(tmp_path, rows, said):
    table = tmp_path / "captions.csv"
    table.write_text(f"file_name,text\n{rows}\n")
    with pytest.raises(ValueError, match=said):
        read_captions(table)
    table.write_text('file_name,text\na.png,"a ring, ""red"""\na.png,"a ring, ""red"""\n')
    assert read_captions(table) == {"a.png": 'a ring, "red"'}
