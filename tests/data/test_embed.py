from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers import small_open_clip

from minidiff.cli import main
from minidiff.data.embed import embed
from minidiff.data.embedder import Embedder
from minidiff.data.embeddings import Embeddings
from minidiff.data.images import ImageFolder
from minidiff.data.pack import pack
from minidiff.data.shards import Shards
from minidiff.metrics.embedders import embedder
from minidiff.store import load

wds = pytest.importorskip("webdataset")
DATA = os.environ.get("MINIDIFF_DATA")
MEANS = Embedder("means", 3, lambda images: images.mean((2, 3)))


def names_of(folder: Path) -> list[list[str]]:
    out = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            out.append(archive.getnames())
    return out


@pytest.fixture
def packed(tmp_path, folder) -> Path:
    """The 24 pictures in shards of ten, with a broken one in the second."""
    (folder / "dog/015.jpeg").write_bytes(b"x")
    captions = {name: f"picture {i}" for i, name in enumerate(ImageFolder(folder).names)}
    pack(ImageFolder(folder), tmp_path / "packed", per_shard=10, captions=captions)
    path = tmp_path / "packed/000001.tar"
    raw = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        member = next(m for m in archive if m.name.endswith(("png", "jpg")))
    raw[member.offset_data : member.offset_data + 8] = bytes(8)
    path.write_bytes(raw)
    return tmp_path / "packed"


def test_embeddings_have_the_keys_and_the_order_of_the_shards(packed, tmp_path):
    source = Shards(packed)
    index = embed(source, MEANS, tmp_path / "out", batch=3)
    assert index["samples"] == 22 and index["skipped"] == 1 and index["encoder"] == "means"
    skipped = source.broken
    assert [s["skipped"] for s in index["shards"]] == [[], skipped, []] and len(skipped) == 1
    keys = [source.samples.key(i) for i in range(len(source)) if source.name(i) not in skipped]
    assert [n for names in names_of(tmp_path / "out") for n in names] == [f"{key}.npy" for key in keys]
    found = Embeddings(tmp_path / "out")
    every = found.tensor()
    assert every.shape == (22, 3) and every.dtype == torch.float32 and len(found) == 22
    images = {source.samples.key(i): source[i][0] for i in range(len(source))}
    for i, key in enumerate(keys):
        assert torch.equal(found[i], every[i]) and found.samples.key(i) == key
        assert (found[i] - images[key].mean((1, 2))).abs().max() < 1e-3  # float16
    with pytest.raises(IndexError):
        found[22]


def test_they_join_their_images(packed, tmp_path):
    embed(Shards(packed), MEANS, tmp_path / "out", suffix="means.npy")
    joined = Shards(packed, targets=("txt", "means.npy"), beside=[tmp_path / "out"])
    for image, text, vector in joined:
        assert (vector - image.mean((1, 2))).abs().max() < 1e-3 and text.startswith("picture ")
    assert joined.broken == Shards(packed).check()


def test_webdataset_reads_them(packed, tmp_path):
    embed(Shards(packed), MEANS, tmp_path / "out")
    theirs = list(wds.WebDataset(str(tmp_path / "out/{000000..000002}.tar"), shardshuffle=False).decode())
    assert all(s["npy"].dtype == "float16" for s in theirs)
    assert torch.equal(torch.stack([torch.from_numpy(s["npy"]).float() for s in theirs]), _tensor(tmp_path / "out"))


def _tensor(folder: Path) -> torch.Tensor:
    return Embeddings(folder).tensor()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_and_any_data_set(folder, tmp_path, workers):
    (folder / "dog/020.png").write_bytes(b"")
    source = ImageFolder(folder)
    index = embed(source, MEANS, tmp_path / "a", batch=4, per_shard=10, workers=workers)
    assert [s["skipped"] for s in index["shards"]] == [[], [], ["dog/020.png"]]
    assert names_of(tmp_path / "a")[2] == [f"{i:09d}.npy" for i in (21, 22, 23)]
    plain = [source[i] for i in range(20)]
    embed(plain, MEANS, tmp_path / "b", batch=7, per_shard=10, workers=workers)
    assert torch.equal(_tensor(tmp_path / "a")[:20], _tensor(tmp_path / "b"))
    assert (tmp_path / "a/000001.tar").read_bytes() == (tmp_path / "b/000001.tar").read_bytes()


def test_an_interrupted_run_goes_on_shard_by_shard(packed, tmp_path):
    seen = []

    def failing(images):
        seen.append(len(images))
        if len(seen) == 6:
            raise KeyboardInterrupt
        return images.mean((2, 3))

    encoder = Embedder("means", 3, failing)
    with pytest.raises(KeyboardInterrupt):
        embed(Shards(packed), encoder, tmp_path / "out", batch=4)
    assert len(names_of(tmp_path / "out")) == 1
    with pytest.raises(ValueError, match="not finished"):
        Embeddings(tmp_path / "out")
    embed(Shards(packed), encoder, tmp_path / "out", batch=4)
    assert seen[:3] == [4, 4, 2] and sum(seen[6:]) == 12, "the first shard is not embedded again"
    embed(Shards(packed), MEANS, tmp_path / "whole", batch=4)
    for name in ("000000.tar", "000001.tar", "000002.tar", "index.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match=r"another job .different: encoder"):
        embed(Shards(packed), Embedder("others", 3, MEANS.encode), tmp_path / "out")


def test_bad_arguments_are_refused(packed, folder, tmp_path):
    out = tmp_path / "out"
    for encoder, arguments, message in (
        (MEANS, {"batch": 0}, "batch must be a whole number >= 1, got 0"),
        (MEANS, {"suffix": "pt"}, "suffix = 'pt'"),
        (Embedder("e", 3, MEANS.encode, 16), {}, "is 8x8; e takes 16x16"),
        (Embedder("e", 3, MEANS.encode, 4), {}, "is 8x8; e takes 4x4"),
        (Embedder("e", 3, lambda x: x.mean((2, 3)) * 1e9), {}, "not finite in float16"),
        (MEANS, {"text": True}, "means reads no texts"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(Shards(packed), encoder, out / message[-5:], **arguments)
    reader = Embedder("e", 3, MEANS.encode, read=lambda texts: torch.zeros(len(texts), 3))
    with pytest.raises(ValueError, match="reads captions, members 'txt', which the data set does not hold"):
        embed(ImageFolder(folder), reader, out, text=True)
    with pytest.raises(ValueError, match="mirror"):
        embed(Shards(packed, mirror=True), MEANS, out)
    with pytest.raises(ValueError, match="name one that ends in npy"):
        Embeddings(packed)


def test_the_features_of_a_committed_classifier(packed, tmp_path):
    arguments = ["data", "embed", packed, "digits-classifier-clean", tmp_path / "out", "--quiet", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0 and "22 samples in 3 shards" in result.output, result.output
    source, system = Shards(packed), load("digits-classifier-clean")
    embed(source, embedder("digits-classifier-clean", raw=True), tmp_path / "again")
    features, n = _tensor(tmp_path / "out"), source.shard_sizes[0]
    expected = system.features(torch.stack([source[i][0].mean(0, keepdim=True) for i in range(n)]))
    assert torch.equal(features, _tensor(tmp_path / "again"))
    torch.testing.assert_close(features[:n], expected, rtol=2e-3, atol=2e-3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small model of open_clip with random weights, and the folder that holds it."""
    folder = tmp_path_factory.mktemp("clip")
    model, normal = small_open_clip(folder, context=8)
    return model, folder, normal


def test_models_of_open_clip(clip, packed, tmp_path):
    model, folder, normal = clip
    source, encoder = Shards(packed), embedder(f"local-dir:{folder}", raw=True)
    assert encoder.size == 8
    embed(source, encoder, tmp_path / "images")
    mean, std = (torch.tensor(normal[k]).view(3, 1, 1) for k in ("mean", "std"))
    image = ((source[0][0] + 1) / 2 - mean) / std
    torch.testing.assert_close(
        _tensor(tmp_path / "images")[0], model.encode_image(image[None])[0], rtol=2e-3, atol=2e-3
    )


def test_pictures_of_several_sizes_are_read_in_that_of_the_model(clip, folder, picture_file, tmp_path):
    model, where, normal = clip
    (folder / "cat/000.png").write_bytes(picture_file(200, size=24))
    arguments = ["data", "embed", folder, f"local-dir:{where}", tmp_path / "out", "--quiet", "--device", "cpu"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0 and "24 samples in 1 shards" in result.output, result.output
    mean, std = (torch.tensor(normal[k]).view(3, 1, 1) for k in ("mean", "std"))
    image = ((ImageFolder(folder, 8)[0][0] + 1) / 2 - mean) / std
    torch.testing.assert_close(_tensor(tmp_path / "out")[0], model.encode_image(image[None])[0], rtol=2e-3, atol=2e-3)


def test_texts(clip, packed, tmp_path):
    import open_clip

    model, folder, _ = clip
    source = Shards(packed, targets="txt")
    embed(source, embedder(f"local-dir:{folder}", raw=True), tmp_path / "texts", text=True, suffix="text.npy")
    found = Embeddings(tmp_path / "texts")
    assert found.suffix == "text.npy" and len(found) == 23  # a broken picture has a caption still
    texts = [source.samples.read(i, "txt").decode() for i in range(23)]
    expected = model.encode_text(open_clip.SimpleTokenizer(context_length=8)(texts))
    torch.testing.assert_close(found.tensor(), expected, rtol=2e-3, atol=2e-3)
    arguments = ["data", "embed", packed, f"local-dir:{folder}", tmp_path / "again", "--text", "--quiet"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0 and torch.equal(_tensor(tmp_path / "again"), found.tensor()), result.output


def test_encoders_that_are_not_there(monkeypatch, tmp_path):
    pytest.importorskip("open_clip")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "weights.safetensors").write_text("nothing")
    for name, message in (
        ("digits-clasifier", "did you mean 'digits-classifier'"),
        ("digits", "digits is no classifier or CLIP and has no features"),
        ("ViT-B32:openai", "did you mean 'ViT-B-32'"),
        ("ViT-B-32:openai2", "not here or cannot be read .*HF_HUB_OFFLINE is set"),
        (f"ViT-B-32:{tmp_path}/none.safetensors", "not here or cannot be read"),
        (f"local-dir:{tmp_path}", "not here or cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder(name, raw=True)


@pytest.mark.skipif(DATA is None, reason="MINIDIFF_DATA names the folder with cifar10.zip")
def test_cifar10(tmp_path):
    source = ImageFolder(Path(DATA or "") / "cifar10.zip", within="test/frog")
    source.names, source.labels = source.names[:100], source.labels[:100]
    pack(source, tmp_path / "frogs", per_shard=40)
    embed(Shards(tmp_path / "frogs"), MEANS, tmp_path / "means")
    expected = torch.stack([image.mean((1, 2)) for image, _ in Shards(tmp_path / "frogs")])
    torch.testing.assert_close(_tensor(tmp_path / "means"), expected, rtol=1e-3, atol=1e-3)
