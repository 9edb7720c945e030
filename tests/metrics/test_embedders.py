"""Embedders: committed classifiers, CLIPs of ours and of open_clip, and Inception-v3 from a file."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import small_open_clip

from minidiff.data.digits import digits
from minidiff.data.embedder import Embedder
from minidiff.metrics.embedders import default_clip, default_features, embedder
from minidiff.recipes import load_recipe
from minidiff.store import load, weights_path


def test_the_committed_classifier_knows_its_digits():
    images, labels = digits("heldout")
    network = embedder("digits-classifier-clean")
    features, log_prob = network.images(images[:100]), network.classes(images[:100])
    assert features.shape == (100, network.width) and log_prob.shape == (100, network.n_classes) == (100, 10)
    assert network.data.name == "digits" and len(network.sha256) == 64 and network.read is None
    assert float((log_prob.argmax(1) == labels[:100]).float().mean()) > 0.9
    assert torch.equal(features, load("digits-classifier-clean").features(images[:100]))


def test_a_published_folder_is_as_good_as_a_name(tmp_path):
    """The same file has the same checksum and gives the same features, wherever it lies."""
    copy = shutil.copytree(weights_path("digits-classifier-clean").parent, tmp_path / "mine")
    ours, theirs = embedder(str(copy)), embedder("digits-classifier-clean")
    images = digits("heldout")[0][:5]
    assert ours.sha256 == theirs.sha256 and torch.equal(ours.images(images), theirs.images(images))


def test_grey_as_colour_and_colour_as_grey():
    grey = digits("heldout")[0][:5]
    network = embedder("digits-classifier-clean")
    assert torch.allclose(network.images(grey.expand(-1, 3, -1, -1)), network.images(grey), atol=1e-5)
    shapes = embedder("shapes16-classifier-clean")
    assert shapes.images(torch.zeros(2, 1, 16, 16)).shape == (2, shapes.width)


SEEING = {"grey": Embedder("grey", None, lambda x: x, 4, 1), "colour": Embedder("colour", None, lambda x: x, 4, 3)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_images_fit(kind, factor, channels, generator):
    """By hand: the mean of each square of pixels, and of the colours where the network sees grey."""
    images = torch.rand(2, channels, 4 * factor, 4 * factor, generator=generator)
    seen = SEEING[kind].images(images)
    assert seen.shape == (2, SEEING[kind].channels, 4, 4)
    for y, x in ((0, 0), (1, 3), (3, 2)):
        square = images[:, :, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].mean((2, 3))
        mean = square if kind == "colour" else square.mean(1, keepdim=True)
        assert torch.allclose(seen[:, :, y, x], mean.expand(-1, SEEING[kind].channels), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (2, 2), (6, 6), (4, 8), (8, 4)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=f"colour sees images of 4x4, got {shape[0]}x{shape[1]}"):
        SEEING["colour"].images(torch.zeros(1, 3, *shape))


def test_any_size_where_none_is_named():
    free = Embedder("free", 3, lambda images: images.mean((2, 3)))
    assert free.images(torch.ones(2, 1, 5, 9)).tolist() == [[1.0] * 3] * 2
    with pytest.raises(ValueError, match="free knows no classes"):
        free.classes(torch.ones(1, 3, 2, 2))
    with pytest.raises(ValueError, match="free reads no texts"):
        free.texts(["a ring"])


@pytest.mark.parametrize("name", ["digits", "shapes16"])
def test_every_set_has_its_default(name):
    assert default_features(load_recipe(name).data) == f"{name}-classifier-clean"


def test_the_default_clip_is_the_clean_one():
    assert default_clip(load_recipe("glide").data) == "scenes-clip"


def test_no_default_for_a_size_or_a_set_that_nobody_trained():
    with pytest.raises(ValueError, match="no committed network has features for digits at 12x12"):
        default_features(load_recipe("digits", ["data.size=12", "network.size=12", "network.attention=[6]"]).data)
    with pytest.raises(ValueError, match=r"no committed CLIP knows digits; choose with --features: .*scenes-clip"):
        default_clip(load_recipe("digits").data)


def test_a_clip_of_ours_raw_and_at_length_one(generator):
    """Cosines need length 1; what is stored keeps the length that the towers gave it."""
    clip, captions = load("scenes-clip"), ["a red ring", "a small blue square"]
    pictures = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    raw, unit = embedder("scenes-clip", raw=True), embedder("scenes-clip")
    for kept, normal, direct in (
        (raw.images(pictures), unit.images(pictures), clip.network.image(pictures, torch.zeros(2))),
        (raw.texts(captions), unit.texts(captions), clip.network.text(clip.tokens(captions))),
    ):
        assert torch.allclose(kept, direct, atol=1e-6) and torch.allclose(F.normalize(kept, dim=1), normal, atol=1e-6)
        assert (kept.norm(dim=1) - 1).abs().min() > 1e-3 and torch.allclose(normal.norm(dim=1), torch.ones(2))
    assert raw.width == unit.width == unit.images(pictures).shape[1] and unit.size == 16


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small model of open_clip in a folder, as published."""
    folder = tmp_path_factory.mktemp("clip")
    return *small_open_clip(folder, context=8), f"local-dir:{folder}"


def test_a_clip_of_open_clip_from_a_folder(released, generator):
    import open_clip

    model, normal, name = released
    texts, raw, unit = ["a ring", "two blue squares"], embedder(name, raw=True), embedder(name)
    mean, std = (torch.tensor(normal[key]).view(3, 1, 1) for key in ("mean", "std"))
    pictures = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    theirs = model.encode_image(((pictures + 1) / 2 - mean) / std)
    read = model.encode_text(open_clip.SimpleTokenizer(context_length=8)(texts))
    for found, expected in ((raw.images(pictures), theirs), (raw.texts(texts), read)):
        assert torch.allclose(found, expected, atol=1e-5)
    for found, expected in ((unit.images(pictures), theirs), (unit.texts(texts), read)):
        assert torch.allclose(found, F.normalize(expected, dim=1), atol=1e-5)
    assert unit.width == 12 and unit.sha256 is None and unit.data is None


def test_a_clip_of_open_clip_brings_pictures_to_its_size(released, generator):
    """Bicubically, as the model was released; what is stored is read from the files in that size."""
    _, _, name = released
    pictures = torch.rand(2, 3, 12, 12, generator=generator) * 2 - 1
    unit = embedder(name)
    fitted = F.interpolate(pictures, (8, 8), mode="bicubic", antialias=True)
    assert unit.size is None and torch.allclose(unit.images(pictures), unit.images(fitted), atol=1e-6)
    with pytest.raises(ValueError, match="sees images of 8x8, got 12x12"):
        embedder(name, raw=True).images(pictures)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file in the layout of Inception's weights, with random numbers in it."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path, kept = tmp_path_factory.mktemp("weights") / "inception.pth", {}
    blank = type("Blank", (module.FeatureExtractorInceptionV3,), {"load_state_dict": lambda self, state: kept})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: None)
        torch.save(blank("inception-v3-compat", ["2048"]).state_dict(), path)
    return path


def test_inception_from_a_file(inception_file):
    network, images = embedder(f"inception:{inception_file}"), torch.rand(2, 1, 16, 16) * 2 - 1
    features, log_prob = network.images(images), network.classes(images)
    assert features.shape == (2, 2048) and log_prob.shape == (2, 1008)
    assert torch.allclose(log_prob.exp().sum(1), torch.ones(2), atol=1e-4)
    assert network.data is None, "its classes are those of no set of ours"


def test_a_weights_file_that_runs_code_is_not_run(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weights": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="does not hold"):
        embedder(f"inception:{tmp_path / 'bad.pth'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digitz-classifier-clean", "did you mean 'digits-classifier-clean'"),
        ("digits-classifier", "pictures are compared by a clean classifier: .*digits-classifier-clean"),
        ("digits", "is no classifier or CLIP and has no features; those that have: .*digits-classifier-clean"),
        ("scenes-clip-noisy", "made for noised images"),
        ("inception", "inception:PATH.*inception:download"),
        ("inception:nowhere.pth", "no Inception weights at nowhere.pth"),
    ],
)
def test_bad_names(name, message, monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match=message):
        embedder(name)


def test_images_of_another_size():
    with pytest.raises(ValueError, match="sees images of 8x8, got 12x12"):
        embedder("digits-classifier-clean").images(torch.zeros(1, 1, 12, 12))
    with pytest.raises(ValueError, match="sees images of 16x16, got 8x8"):
        embedder("shapes16-classifier-clean").images(torch.zeros(1, 3, 8, 8))
