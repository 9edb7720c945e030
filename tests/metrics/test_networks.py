"""Feature networks: the committed ones, and Inception-v3 from a file."""

import shutil

import pytest
import torch
from minidiff.metrics.networks import default_features, feature_network
from minidiff.systems.zoo import weights_path

from minidiff.data.digits import digits
from minidiff.recipes import load_recipe


def test_the_committed_classifier_knows_its_digits():
    images, labels = digits("heldout")
    network = feature_network("digits-classifier-clean")
    features, log_prob = network(images[:100])
    assert features.shape == (100, network.width) and log_prob.shape == (100, 10)
    assert network.data.name == "digits" and len(network.sha256) == 64
    assert float((log_prob.argmax(1) == labels[:100]).float().mean()) > 0.9


def test_a_published_folder_is_as_good_as_a_name(tmp_path):
    """The same file has the same checksum and gives the same features, wherever it lies."""
    copy = shutil.copytree(weights_path("digits-classifier-clean").parent, tmp_path / "mine")
    ours, theirs = feature_network(str(copy)), feature_network("digits-classifier-clean")
    images = digits("heldout")[0][:5]
    assert ours.sha256 == theirs.sha256 and torch.equal(ours(images)[0], theirs(images)[0])


def test_grey_as_colour_and_colour_as_grey():
    grey = digits("heldout")[0][:5]
    network = feature_network("digits-classifier-clean")
    assert torch.allclose(network(grey.expand(-1, 3, -1, -1))[0], network(grey)[0], atol=1e-5)
    shapes = feature_network("shapes16-classifier-clean")
    assert shapes(torch.zeros(2, 1, 16, 16))[0].shape == (2, shapes.width)


@pytest.mark.parametrize("name", ["digits", "shapes16"])
def test_every_set_has_its_default(name):
    assert default_features(load_recipe(name)) == f"{name}-classifier-clean"


def test_no_default_for_a_size_that_nobody_trained():
    with pytest.raises(ValueError, match="no committed network has features for digits at 12x12"):
        default_features(load_recipe("digits", ["network.size=12"]))


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
    network = feature_network(f"inception:{inception_file}")
    features, log_prob = network(torch.rand(2, 1, 16, 16) * 2 - 1)
    assert features.shape == (2, 2048) and log_prob.shape == (2, 1008)
    assert torch.allclose(log_prob.exp().sum(1), torch.ones(2), atol=1e-4)


def test_a_weights_file_that_runs_code_is_not_run(tmp_path):
    pytest.importorskip("torch_fidelity")

    class Attack:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"weights": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="does not hold"):
        feature_network(f"inception:{tmp_path / 'bad.pth'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digitz-classifier-clean", "did you mean 'digits-classifier-clean'"),
        ("digits", "is no classifier and has no features"),
        ("inception", "inception:PATH.*inception:download"),
        ("inception:nowhere.pth", "no Inception weights at nowhere.pth"),
    ],
)
def test_bad_names(name, message, monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match=message):
        feature_network(name)


def test_images_of_another_size():
    with pytest.raises(ValueError, match="sees images of 8x8, got 16x16"):
        feature_network("digits-classifier-clean")(torch.zeros(1, 1, 16, 16))
