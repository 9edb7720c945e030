from __future__ import annotations

import io
import json
import logging
import os
import pickle
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from minidiff.data.images import ImageFolder
from minidiff.data.pack import pack
from minidiff.data.samples import Samples
from minidiff.data.shards import Shards
from minidiff.data.tar import read_table, scan

wds = pytest.importorskip("webdataset")
DATA = os.environ.get("MINIDIFF_DATA")


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], **options) -> Path:
    """A tar archive by the standard library, as any other program writes it."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def packed(tmp_path, folder) -> Path:
    """The 24 pictures in shards of ten."""
    pack(ImageFolder(folder), tmp_path / "packed", per_shard=10)
    return tmp_path / "packed"


@pytest.fixture
def laion(tmp_path, picture_file) -> Path:
    """Two shards as img2dataset lays them out, beside its own parquet and statistics."""
    for shard in range(2):
        members = {}
        for i in range(3):
            key = f"{shard:05d}{i:04d}"
            members |= {f"{key}.jpg": picture_file(40 * i + 100 * shard, "JPEG")}
            members |= {f"{key}.json": json.dumps({"key": key, "width": 8}).encode()}
            members |= {f"{key}.txt": f"a píctúre, number {i}".encode()}
        write_tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    return tmp_path


def test_random_access_is_sequential_access_and_what_the_folder_holds(packed, folder):
    data, source = Shards(packed), ImageFolder(folder)
    assert data.classes == ("cat", "dog") and data.shard_sizes == (10, 10, 4) and len(data) == 24
    one_by_one = [data[i] for i in range(24)]
    for i in torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist():
        image, label = data[i]
        original, expected = source[int(data.samples.key(i))]
        assert image.dtype == torch.float32 and torch.equal(image, one_by_one[i][0])
        assert torch.equal(image, original) and label == expected == data.labels[i]
    assert torch.equal(data[-1][0], one_by_one[23][0]) and data.broken == []
    with pytest.raises(IndexError):
        data[24]
    assert Shards(packed, size=5)[3][0].shape == (3, 5, 5)


def test_shard_sizes_are_runs_of_items_in_one_file(packed):
    data, mirrored = Shards(packed), Shards(packed, mirror=True)
    runs = np.repeat(range(3), data.shard_sizes).tolist()
    assert [data.shard_of(i) for i in range(24)] == runs
    assert len(mirrored) == sum(mirrored.shard_sizes) == 48
    assert [mirrored.shard_of(i) for i in range(48)] == np.repeat(range(6), mirrored.shard_sizes).tolist()
    assert torch.equal(mirrored[24 + 5][0], data[5][0].flip(2)) and not torch.equal(mirrored[29][0], data[5][0])
    for k, name in enumerate(f.name for f in data.samples.files):
        assert all(data.name(i).startswith(name + "/") == (run == k) for i, run in enumerate(runs))


def test_workers_and_pickling(packed):
    data = Shards(packed, size=4)
    alone = torch.stack([image for image, _ in data])  # the parent's files are open when the workers start
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat([images for images, _ in loader]), alone)
    assert torch.equal(pickle.loads(pickle.dumps(data))[7][0], alone[7])


def test_webdataset_reads_the_same(packed):
    data = Shards(packed)
    pattern = str(packed / "{000000..000002}.tar")
    theirs = list(wds.WebDataset(pattern, shardshuffle=False).decode("torchrgb8"))
    assert [s["__key__"] for s in theirs] == [data.samples.key(i) for i in range(24)]
    for (image, label), sample in zip(data, theirs, strict=True):
        pixels = sample.get("jpg", sample.get("png"))
        assert torch.equal(((image + 1) * 127.5).round().to(torch.uint8), pixels) and sample["cls"] == label


def test_reads_what_webdataset_writes(tmp_path):
    with wds.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(7):
            image = np.full((4, 4, 3), 30 * i, np.uint8)
            vector = np.arange(3, dtype=np.float16) + i
            writer.write({"__key__": f"dir/{i}", "png": image, "cls": 6 - i, "txt": f"no {i}", "v.npy": vector})
    data = Shards(tmp_path / "train-*.tar", targets=("cls", "txt", "v.npy"))
    assert data.shard_sizes == (3, 3, 1) and data.classes == tuple("0123456") and data.samples.key(4) == "dir/4"
    for i, (image, label, text, vector) in enumerate(data):
        assert torch.allclose(image, torch.full((3, 4, 4), 30 * i / 127.5 - 1)) and (label, text) == (6 - i, f"no {i}")
        assert vector.dtype == torch.float16 and vector.tolist() == [i, i + 1, i + 2]
    few = Shards(str(tmp_path / "train-{0001..0002}.tar"))
    assert few.labels.tolist() == [3, 2, 1, 0]
    assert Shards([tmp_path / "train-0002.tar"]).labels.tolist() == [0]
    assert Shards(tmp_path / "train-0002.tar").labels.tolist() == [0]


def test_reads_the_layout_of_img2dataset(laion):
    data = Shards(laion, targets=("txt", "json"))
    assert data.shard_sizes == (3, 3) and data.classes == () and data.labels.tolist() == [-1] * 6
    image, text, about = data[4]
    assert text == "a píctúre, number 1" and about == {"key": "000010001", "width": 8}
    assert abs(float(image[0, 0, -1]) - (140 / 127.5 - 1)) < 0.05
    assert Shards(laion)[2][1] == -1  # the null label
    assert Shards(laion, targets="txt")[0][1] == "a píctúre, number 0"


def test_broken_members_are_skipped_counted_and_named(tmp_path, picture_file, caplog):
    good = picture_file(200)
    members = [
        ("a.png", good), ("a.cls", b"1\n"),
        ("b.png", good[:45]), ("b.cls", b"1"),  # truncated picture
        ("c.png", good), ("c.cls", b"one"),  # no number
        ("d.cls", b"0"),  # no picture
        ("e.png", good), ("e.json", b"{}"),  # no label
        ("f.png", good), ("f.cls", b"-1"),
        ("g.png", b""), ("g.cls", b"0"),
        ("h.png", picture_file(20)), ("h.cls", b"0"),
    ]  # fmt: skip
    data = Shards(write_tar(tmp_path / "x.tar", members))
    assert data.classes == ("0", "1") and data.labels.tolist() == [1, 1, -1, 0, -1, -1, 0, 0] and data.broken == []
    with caplog.at_level(logging.WARNING):
        items = [data[i] for i in range(8)]
    assert data.broken == [f"x.tar/{k}" for k in "bcdefg"] == data.check()
    assert [label for _, label in items] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert all(torch.equal(image, items[7][0]) for image, _ in items[1:])  # the next good one stands in
    for reason in ("'one' is no class", "d has no 'png'", "e has no 'cls'", "'-1' is no class"):
        assert reason in caplog.text


def test_a_label_beyond_the_classes_is_broken(packed):
    index = json.loads((packed / "index.json").read_text())
    (packed / "index.json").write_text(json.dumps(index | {"classes": ["cat"]}))
    data = Shards(packed)
    assert data.classes == ("cat",) and len(data.check()) == 12


@pytest.mark.parametrize("cut", ["in a picture", "in a label", "in a header", "after a sample"])
def test_a_truncated_shard_gives_what_comes_before(packed, cut, caplog):
    path = packed / "000001.tar"
    table = scan(path)
    suffix = "png" if table.places["png"][7, 1] > 0 else "jpg"
    kept, at, damage = {
        "in a picture": (7, int(table.places[suffix][7, 0]) + 20, "ends early"),
        "in a label": (7, int(table.places["cls"][7, 0]), "ends early"),
        "in a header": (7, int(table.places["cls"][7, 0]) - 512 + 100, "damaged"),
        "after a sample": (7, int(table.places["cls"][7, 0]) - 512, "lacks its end mark"),
    }[cut]
    whole = [image for image, _ in Shards(packed)]
    os.truncate(path, at)
    data = Shards(packed)
    assert damage in caplog.text and list(data.samples.damage) == ["000001.tar"]
    started = cut in ("in a picture", "in a label")  # the sample that was cut is listed, and counted when it is read
    assert data.shard_sizes == (10, kept + started, 4)
    for i in range(17):
        assert torch.equal(data[i][0], whole[i])
    assert torch.equal(data[16 + started + 1][0], whole[20])
    assert data.check() == ([data.name(17)] if started else [])


def test_damage_in_the_middle_is_noticed(packed):
    path = packed / "000000.tar"
    raw = bytearray(path.read_bytes())
    start = int(scan(path).places["cls"][3, 0]) + 512
    raw[start : start + 8] = b"garbage!"
    path.write_bytes(raw)
    data = Shards(packed)
    assert data.shard_sizes == (4, 10, 4) and f"from byte {start} on" in data.samples.damage["000000.tar"]


def test_empty_shards(tmp_path, picture_file):
    write_tar(tmp_path / "0.tar", {})
    (tmp_path / "1.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 shards of .* hold no samples"):
        Shards(tmp_path)
    write_tar(tmp_path / "2.tar", {"a.png": picture_file(1), "a.cls": b"0"})
    write_tar(tmp_path / "3.tar", {})
    for _ in range(2):  # scanned, then from the offsets kept
        data = Shards(tmp_path)
        assert data.shard_sizes == (0, 0, 1, 0) and data.shard_of(0) == 2 and data[0][1] == 0
        assert data.samples.damage == {"1.tar": "is empty"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_strange_names(tmp_path, picture_file, form):
    good, long = picture_file(1), "d" * 80 + "/" + "é" * 60
    members = [
        (f"{long}.PNG", good), (f"{long}.cls", b"0"),
        ("./dot.slash.png", good), (".hidden", b"x"), ("noextension", b"x"), ("__meta__/x.json", b"{}"),
        ("twice.png", good), ("twice.png", b"the second"),
    ]  # fmt: skip
    samples = Samples(write_tar(tmp_path / "x.tar", members, format=form))
    assert [samples.key(i) for i in range(3)] == [long, "./dot", "twice"]
    assert set(samples.suffixes) == {"png", "cls", "slash.png"}
    assert samples.read(0, "png") == good == samples.read(2, "png")


def test_the_offsets_are_kept_until_the_shard_changes(packed, monkeypatch, picture_file):
    data = Shards(packed)
    assert sorted(p.name for p in packed.glob(".*")) == [f".00000{k}.tar.index" for k in range(3)]
    monkeypatch.setattr("minidiff.data.tar.scan", lambda path: pytest.fail(f"{path} scanned again"))
    again = Shards(packed)
    assert again.shard_sizes == data.shard_sizes and torch.equal(again[13][0], data[13][0])
    monkeypatch.undo()
    (packed / ".000000.tar.index").write_bytes(b"damaged")
    assert torch.equal(Shards(packed)[3][0], data[3][0])
    time.sleep(0.01)
    write_tar(packed / "000000.tar", {"a.png": picture_file(1), "a.cls": b"0"})
    assert Shards(packed).shard_sizes == (1, 10, 4)


def test_a_folder_that_cannot_be_written_to(packed, monkeypatch):
    for kept in packed.glob(".*.index"):
        kept.unlink()

    def refuse(path, content):
        raise PermissionError("read-only")

    monkeypatch.setattr("minidiff.data.tar.write_atomically", refuse)
    assert len(Shards(packed)) == 24 and not list(packed.glob(".*"))


def test_more_shards_than_open_files(packed, monkeypatch):
    monkeypatch.setattr("minidiff.data.samples.OPEN_FILES", 1)
    data = Shards(packed)
    assert [data[i][1] for i in (0, 23, 1, 12, 2)] == data.labels[[0, 23, 1, 12, 2]].tolist()
    assert len(data.samples._open) == 1


def test_bad_places_and_targets_are_refused(tmp_path, packed, laion, picture_file):
    (tmp_path / "text.tar").write_text("no archive" * 100)
    write_tar(tmp_path / "notes.tar", {"a.txt": b"1"})
    write_tar(tmp_path / "dots.tar", {f"a.{i}.png": picture_file(1) for i in range(80)})
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.add(packed / "index.json", "a.json")
    (tmp_path / "empty").mkdir()
    for where, message in (
        (tmp_path / "missing.tar", "1 of 1 shards do not exist"),
        (str(tmp_path / "{00000..00003}.tar"), "2 of 4 shards do not exist: .*00002.tar"),
        (str(tmp_path / "no-*.tar"), "no shards in"),
        (tmp_path / "empty", "no shards in"),
        ([], "no shards in"),
        (tmp_path / "text.tar", "no tar archive"),
        (tmp_path / "z.tar", "compressed"),
        (tmp_path / "notes.tar", "no images in .* hold txt; jpg"),
        (tmp_path / "dots.tar", "written without dots"),
    ):
        with pytest.raises(ValueError, match=message):
            Shards(where)
    (packed / "000001.tar").rename(packed / "gone")
    with pytest.raises(ValueError, match=r"1 of 3 shards do not exist: .*000001.tar"):
        Shards(packed)
    images = str(tmp_path / "0000*.tar")
    for targets, message in (("npy", "no 'npy' in .* they hold"), ("jpg", "target 'jpg' cannot be decoded")):
        with pytest.raises(ValueError, match=message):
            Shards(images, targets=targets)
    with pytest.raises(ValueError, match="size must be a whole number >= 1"):
        Shards(images, size=0)
    (tmp_path / "up" / "train").mkdir(parents=True)
    write_tar(tmp_path / "up" / "train" / "0.tar", {"a.png": picture_file(1)})
    with pytest.raises(ValueError, match="there are some in its folders train"):
        Shards(tmp_path / "up")


def test_labels_that_all_fail_say_so(tmp_path, picture_file):
    data = Shards(write_tar(tmp_path / "x.tar", {"a.png": picture_file(1), "a.cls": b"cat"}))
    with pytest.raises(ValueError, match="none of the 1 images"):
        data[0]


def test_members_beside_join_by_key(packed, tmp_path):
    data = Shards(packed)
    beside = tmp_path / "beside"
    beside.mkdir()
    vector = lambda i: np.full(2, i, np.float16)
    for k, shard in enumerate(data.samples.files):
        with wds.TarWriter(str(beside / shard.name)) as writer:
            for i in range(24):
                if data.shard_of(i) == k and i % 5:  # every fifth is missing, and the keys of shard 1 come backwards
                    j = 29 - i if k == 1 and (29 - i) % 5 else i
                    writer.write({"__key__": data.samples.key(j), "x.npy": vector(j)})
    joined = Shards(packed, targets=("cls", "x.npy"), beside=[beside])
    for i in range(24):
        if i % 5:
            image, _, found = joined[i]
            assert torch.equal(image, data[i][0]) and found.tolist() == [i, i]
    assert joined.check() == [data.name(i) for i in range(0, 24, 5)]
    with pytest.raises(ValueError, match="both hold members"):
        Shards(packed, beside=[packed])
    (beside / "000002.tar").unlink()
    with pytest.raises(ValueError, match="lacks 1 of 3 shards: 000002"):
        Shards(packed, beside=[beside])


def test_memory_of_the_index_is_a_few_bytes_a_sample(tmp_path):
    with wds.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i in range(500):
            writer.write({"__key__": f"{i:09d}", "png": b"", "cls": 0})
    samples = Samples(tmp_path)
    assert len(pickle.dumps(samples)) < 500 * 64 and len(read_table(tmp_path / "x.tar").keys) == 500


@pytest.mark.skipif(DATA is None, reason="MINIDIFF_DATA names the folder with cifar10.zip")
def test_cifar10(tmp_path):
    source = ImageFolder(Path(DATA or "") / "cifar10.zip", within="test/cat")
    source.names, source.labels = source.names[:300], source.labels[:300]
    pack(source, tmp_path / "cats", per_shard=128)
    data = Shards(tmp_path / "cats")
    assert data.shard_sizes == (128, 128, 44) and data.classes == ("cat",) and data.check() == []
    for i in range(0, 300, 7):
        assert torch.equal(data[i][0], source[int(data.samples.key(i))][0])


def test_a_system_that_cannot_read_at_a_place(packed, monkeypatch):
    """Windows has no ``pread``."""
    expected = [Shards(packed).read(i) for i in range(24)]
    monkeypatch.delattr(os, "pread")
    data = Shards(packed)
    assert [data.read(i) for i in range(24)] == expected and not data.check()


def test_members_that_lie_apart_say_how_shards_are_written(tmp_path, picture_file):
    image = picture_file(9)
    apart = [("a.png", image), ("b.png", image), ("a.cls", b"0"), ("b.cls", b"1")]
    path = write_tar(tmp_path / "x.tar", apart)
    with pytest.raises(ValueError, match=r"no sample .* has an image and cls: .*x\.tar/a has png alone.*--sort=name"):
        Shards(path)
    path = write_tar(tmp_path / "y.tar", sorted(apart))
    assert Shards(path).labels.tolist() == [0, 1] and not Shards(path).check()


def test_a_shard_that_was_replaced_is_read_anew_even_with_the_size_and_time_of_before(tmp_path, picture_file):
    image = picture_file(9)
    members = lambda first, second: [("a.png", image), ("a.cls", first), ("b.png", image), ("b.cls", second)]
    path = write_tar(tmp_path / "x.tar", members(b"0", b"1"))
    assert Shards(path).labels.tolist() == [0, 1]
    before = path.stat()
    write_tar(path, members(b"1", b"0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert Shards(path).labels.tolist() == [1, 0]
    assert Shards(path).labels.tolist() == [1, 0], "from the index that was written anew"


def test_keys_with_dots_say_so(tmp_path):
    """A sample "cat.000001.png" is the member "000001.png" of "cat", as webdataset reads it."""
    shard = write_tar(tmp_path / "0.tar", {f"cat.{i:06d}.png": b"x" for i in range(20)})
    with pytest.raises(ValueError, match=r"they hold 000000\.png, .*, \.\.\.; .* keys have no dots") as error:
        Shards(shard)
    assert "000019.png" not in str(error.value), "not all of a million"
