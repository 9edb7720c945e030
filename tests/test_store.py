"""Whatever has a name: committed checkpoints, runs, what they published, released files; and names that are none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minidiff import load as top_load
from minidiff import pretrained, store
from minidiff.data.sets import load_set
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import begun, card, checkpoints, find, load, recipe_of, reference, weights_path
from minidiff.systems.classifier import NoisyClassifier
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import publish

TINY = str(Path(__file__).parent / "training/tiny.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, what it published, and its recipe. Its name has an equals sign in it."""
    folder = tmp_path_factory.mktemp("runs") / "lr=1"
    recipe = load_recipe(TINY, ["training.steps=3"])
    train(recipe, Recipe.build, folder, cpu=True, quiet=True)
    publish(recipe, recipe.build(), folder, folder / "published")
    return folder, recipe


def ready(system) -> bool:
    """In evaluation mode, float32, without gradients."""
    parameters = list(system.parameters())
    return not system.training and all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)


@pytest.mark.parametrize("name", checkpoints())
def test_committed_checkpoints_load_by_name(name):
    found = find(name)
    assert ready(found.system) and found.recipe == recipe_of(name) and found.path == weights_path(name)
    weights, _ = load_checkpoint(found.path)
    state = found.system.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(value.float(), state[key]) for key, value in weights.items())


def test_a_name_by_any_door():
    one, other = (made("digits") for made in (top_load, load))
    assert type(one) is type(other) and torch.equal(*(next(system.parameters()) for system in (one, other)))


def test_a_run_gives_its_averaged_weights(run):
    folder, recipe = run
    found = find(str(folder))
    assert ready(found.system) and found.recipe == recipe and found.path == folder / "last.safetensors"
    tensors, _ = load_checkpoint(found.path)
    for name, value in found.system.state_dict().items():
        (average,) = (t for key, t in tensors.items() if key.startswith("ema") and key.endswith(name))
        assert torch.equal(value, average)
        assert not torch.equal(value, tensors[f"model.{name}"]) or value.abs().max() == 0


def test_what_a_run_published_loads_by_its_folder(run):
    folder, recipe = run
    found = find(str(folder / "published"))
    assert ready(found.system) and found.recipe == recipe == recipe_of(str(folder / "published"))
    run_weights = load(str(folder)).state_dict()
    assert all(torch.equal(v, run_weights[k].half().float()) for k, v in found.system.state_dict().items())
    assert card(str(folder / "published"))["steps"] == 3


def test_training_begins_where_another_run_was_published(run):
    folder, recipe = run
    published = load(str(folder / "published")).state_dict()
    for start in (folder / "published", folder / "published/model.safetensors"):
        system = begun(replace(recipe, start=str(start)))
        assert all(torch.equal(v, published[k]) for k, v in system.state_dict().items())
    torch.manual_seed(3)
    alone = recipe.build().state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(v, alone[k]) for k, v in begun(recipe).state_dict().items()), "nothing to begin from"


TINY_ADM = ["size=16", "channels=16", "channel_mult=[1,2]", "attention=[8]", "groups=4", "head_channels=8", "classes=7"]


def test_a_released_file_loads_as_its_preset(tmp_path, monkeypatch):
    recipe = load_recipe("adm-imagenet64", [f"network.{change}" for change in TINY_ADM])
    monkeypatch.setattr(pretrained, "load_recipe", lambda name: {"adm-imagenet64": recipe}[name])
    generator = torch.Generator().manual_seed(0)
    shapes = recipe.build(empty=True).network.state_dict()
    tensors = {name: torch.randn(value.shape, generator=generator) for name, value in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    found = find(f"adm-imagenet64={tmp_path / 'model.safetensors'}")
    assert ready(found.system) and found.recipe == recipe and found.path == tmp_path / "model.safetensors"
    assert all(torch.equal(found.system.network.state_dict()[name], value) for name, value in tensors.items())
    with pytest.raises(ValueError, match="no preset 'adm-imagenet65': did you mean 'adm-imagenet64'"):
        load(f"adm-imagenet65={tmp_path / 'model.safetensors'}")
    with pytest.raises(ValueError, match="no checkpoint at "):
        load(f"adm-imagenet64={tmp_path / 'nowhere.pt'}")


def test_a_released_clip_lies_in_a_folder_or_comes_from_open_clip(tmp_path):
    from helpers import small_open_clip

    small_open_clip(tmp_path, context=16)
    found = find(f"local-dir:{tmp_path}", can="critic")
    assert ready(found.system) and found.recipe is None and found.path is None
    with pytest.raises(ValueError, match="is a CLIP, which has no classifier"):
        load(f"local-dir:{tmp_path}", can="classifier")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "no checkpoint, run or preset 'digit': did you mean 'digits'?"),
        ("scenes-clap", "no checkpoint, run or preset 'scenes-clap': did you mean 'scenes-clip'?"),
        ("/nowhere", "no checkpoint, run or preset '/nowhere': there are the checkpoints "),
        ("", "no checkpoint, run or preset ''"),
    ],
)
def test_names_that_are_none(name, message):
    for ask in (load, card, recipe_of, weights_path):
        with pytest.raises(ValueError, match=re.escape(message)):
            ask(name)


def test_what_it_cannot_do_is_said():
    assert isinstance(load("digits-classifier", can="classifier"), NoisyClassifier)
    with pytest.raises(
        ValueError, match="digits is a class_conditional, which has no classifier; what has one is accepted"
    ):
        load("digits", can="classifier")
    with pytest.raises(ValueError, match="digits-classifier is a classifier, which has no critic"):
        load("digits-classifier", can="critic")
    assert hasattr(load("scenes-clip", can="critic"), "critic")


def test_damaged_weights_are_refused_by_their_file(run, tmp_path):
    folder, _ = run
    for name in ("card.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "published" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no checkpoint at "):
        load(str(tmp_path))


def test_features_beside_a_clean_classifier():
    features, labels = reference("digits-classifier-clean")
    heldout = load_set(recipe_of("digits-classifier-clean").data, "heldout", 40)
    assert features.dtype == torch.float32 and len(features) == len(labels)
    own = load("digits-classifier-clean").features(heldout["image"])
    step = len(features) // 40
    assert torch.equal(labels[::step][:3], heldout["label"][:3])
    torch.testing.assert_close(features[:1], own[:1], rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="no reference features beside 'digits'"):
        reference("digits")


def test_the_data_lie_in_the_source_tree_or_in_the_package(tmp_path, monkeypatch):
    assert (store.data_folder() / "checkpoints/digits/card.json").is_file() and "digits" in checkpoints()
    monkeypatch.setattr(store, "data_folder", lambda: tmp_path)
    assert checkpoints() == []


# --- presets and recipes without weights, devices, overrides -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adm-imagenet64", "`minidiff download adm-imagenet64` fetches 64x64_diffusion.pt into weights/; then name it "
         "as adm-imagenet64=weights/64x64_diffusion.pt, or on the command line add --weights weights/64x64_diffusion"),
        ("glide-clip", "fetches clip_image_enc.pt and clip_text_enc.pt into weights/; then name it as glide-clip=weig"),
        ("imagen-words", "train it with `minidiff train imagen-words`, then name the folder runs/imagen-words"),
    ],
)  # fmt: skip
def test_what_to_do_without_weights(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        load(name)


def test_weights_that_lie_where_downloads_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/base.pt").touch()
    with pytest.raises(ValueError, match=r"base\.pt lies in weights/: name it as glide-base=weights/base\.pt"):
        load("glide-base")


def test_a_run_that_is_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/imagen-words").mkdir(parents=True)
    (tmp_path / "runs/imagen-words/last.safetensors").touch()
    with pytest.raises(ValueError, match="name its run, runs/imagen-words"):
        load("imagen-words")


def test_unknown_names_list_all_that_are_known_the_nearest_first():
    message = r"did you mean 'digits'\? There are the checkpoints digits, digits-"
    with pytest.raises(ValueError, match=message) as refused:
        load("digitss")
    for name in [*checkpoints(), *pretrained.presets()]:
        assert re.search(rf"[ ,]{name}(,|;|$)", str(refused.value)), name
    with pytest.raises(ValueError, match="and the presets adm-imagenet64, adm-imagenet"):
        load("adm-imagenet-64")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(ValueError, match=f"there is no device '{device}' here; cpu"):
        find("digits", device=device)


def test_a_recipe_is_changed_where_the_weights_still_fit():
    plain, changed = load("digits"), load("digits", overrides=["network.dropout=0.5", "schedule.T=500"])
    assert changed.network.config.dropout == 0.5 and changed.schedule.T == 500
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, changed.state_dict()[name])
    with pytest.raises(ValueError, match="does not fit"):
        load("digits", overrides=["network.channels=16"])
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        load("digits", overrides=["network.dropot=0.5"])
    with pytest.raises(ValueError, match="has no recipe to change"):
        load("ViT-B-32:nosuch", overrides=["network.dropout=0"])


def test_a_recipe_that_goes_on_from_one_that_is_not_here_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`minidiff train glide` makes it; or begin anew"):
        begun(load_recipe("glide-either"))
    with pytest.raises(ValueError, match=r"goes on from elsewhere.model\.safetensors, which is not here; begin"):
        begun(load_recipe("glide-either", ["start=elsewhere/model.safetensors"]))
