"""Pictures against captions: each perturbation lowers its own measure and no other; scores against their formulas."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from minidiff import store
from minidiff.data.embedder import Embedder
from minidiff.data.prompts import Sheet, scene_sheet
from minidiff.data.render import render
from minidiff.data.scenes import Object, Scene, Scenes
from minidiff.metrics.captions import (
    FITS,
    ByCaption,
    asked,
    clip_score,
    diversity,
    fits,
    named,
    place_of_name,
)
from minidiff.metrics.embedders import default_clip, embedder
from minidiff.metrics.evaluation import judge, read
from minidiff.metrics.processes import Processes
from minidiff.metrics.quality import frechet_distance
from minidiff.recipes import DataRecipe, load_recipe
from minidiff.training.checkpoint import export_weights

ALONE = Processes(0, 1, torch.device("cpu"))
CAPTION = "a small red ring above a blue square"
RING, SQUARE = Object("ring", "red", "small", 0.5, 0.25, 0.138), Object("square", "blue", "large", 0.5, 0.7, 0.194)
MEANS = Embedder("means", 3, lambda images: images.mean((2, 3)))


def seen(*objects: Object) -> dict[str, bool]:
    """What the oracle finds of CAPTION in a picture of these objects."""
    image = render(Scenes.of([Scene(objects)]), 32)
    return {name: bool(found) for name, found in fits([CAPTION], image).items()}


def changed(o: Object, **changes) -> Object:
    return Object(**{**vars(o), **changes})


EVERY = {"count", "shape", "color", "binding", "relation", "all"}


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        ((RING, SQUARE), set()),
        ((SQUARE, RING), set()),
        ((changed(RING, color="blue"), changed(SQUARE, color="red")), {"binding", "relation", "all"}),
        ((changed(RING, y=0.75), changed(SQUARE, y=0.25)), {"relation", "all"}),
        ((changed(RING, color="green"), SQUARE), {"color", "binding", "relation", "all"}),
        ((changed(RING, shape="star"), SQUARE), {"shape", "binding", "relation", "all"}),
        ((changed(RING, size="large", radius=0.194), SQUARE), {"all"}),
        ((changed(SQUARE, y=0.5),), EVERY),
    ],
    ids=["right", "other order", "colours swapped", "places swapped", "colour", "shape", "size", "an object lost"],
)
def test_each_perturbation_is_seen_by_its_own_measures(objects, wrong):
    assert {name for name, found in seen(*objects).items() if not found} == wrong


def test_what_captions_ask_for():
    found = asked(["a red ring", "a red ring and a blue square", "a red ring beside a blue square", CAPTION])
    assert found["binding"].tolist() == [False, True, True, True]
    assert found["relation"].tolist() == [False, False, True, True]
    assert all(bool(found[name].all()) for name in ("count", "shape", "color", "all"))


def test_clip_score_is_hessels_formula(generator):
    images, texts = (torch.randn(50, 7, generator=generator) for _ in range(2))
    images[0], texts[1] = texts[0] * 3, -images[1]
    for i, score in enumerate(clip_score(images, texts).tolist()):
        a, b = images[i].double().numpy(), texts[i].double().numpy()
        cosine = float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
        assert score == pytest.approx(2.5 * max(cosine, 0), abs=1e-5)
    assert clip_score(images, texts)[0] == pytest.approx(2.5) and clip_score(images, texts)[1] == 0


def test_diversity_is_the_mean_distance_of_pairs(generator):
    features = torch.randn(6, 4, 5, generator=generator)
    for row, found in zip(features, diversity(features), strict=True):
        pairs = [float((a - b).norm()) for a, b in itertools.combinations(row, 2)]
        assert float(found) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert diversity(features[:, :1].expand(-1, 3, -1)).tolist() == [0.0] * 6
    with pytest.raises(ValueError, match=r"captions, 2 pictures or more"):
        diversity(features[:, :1])


def plan(sheet: Sheet, rows: list, reference: torch.Tensor, seeing: Embedder = MEANS, again: int = 8) -> ByCaption:
    n = len(sheet.captions)
    unnumbered = TensorDataset(reference, torch.full((len(reference),), -1))
    return ByCaption(rows, n + again, unnumbered, "real", sheet, seeing, draws=20, quiet=True)


def row(name: str, sheet: Sheet, first: torch.Tensor, second: torch.Tensor):
    """A row of pictures of all captions, and others of the first of them."""
    number = torch.cat([torch.arange(len(first)), torch.arange(len(second))])
    return name, None, read(TensorDataset(torch.cat([first, second]), number), ALONE, 16)


@pytest.fixture(scope="module")
def sheet() -> Sheet:
    return scene_sheet("heldout", 40, 16, others=3)


@pytest.fixture(scope="module")
def judged(sheet):
    """Real pictures, the same with the captions of their neighbours, and the reference itself."""
    first, other, *reference = sheet.pictures
    rows = [
        row("real", sheet, first, other[:8]),
        row("shifted", sheet, first.roll(2, 0), other[:8]),
        row("reference", sheet, reference[0], reference[0][:8]),
    ]
    texts = lambda captions: MEANS.images(first)  # a CLIP that knows the picture of each caption by heart
    knowing = Embedder("knowing", 3, MEANS.images, read=texts)
    found = judge(plan(sheet, rows, reference[0], knowing), ALONE)
    return {row["what"]: row["measures"] for row in found["rows"]}


def test_real_pictures_fit_their_captions_and_not_those_of_others(judged):
    assert judged["real"]["all"]["low"] > 0.8 > judged["shifted"]["all"]["high"]
    assert judged["shifted"]["count"]["value"] == judged["real"]["count"]["value"] == 1, "two on, as many objects"
    for measures in judged.values():
        assert all(m["low"] <= m["value"] <= m["high"] for m in measures.values())


def test_a_clip_that_knows_the_pictures_prefers_them(judged):
    assert judged["real"]["clip_score"]["value"] == pytest.approx(2.5, abs=1e-5)
    assert judged["shifted"]["clip_score"]["high"] < 2.5


def test_the_reference_beside_itself(judged, sheet):
    assert judged["reference"]["frechet"]["value"] < 1e-6 and judged["reference"]["diversity"]["value"] == 0
    first, _, reference, _ = (MEANS.images(p) for p in sheet.pictures)
    assert judged["real"]["frechet"]["value"] == pytest.approx(frechet_distance(first, reference), rel=1e-4)
    assert judged["real"]["diversity"]["low"] > 0


def test_accuracies_count_the_captions_that_ask(sheet):
    """By hand: verdicts of the oracle on the pictures of the sheet, over the captions that ask."""
    shown, right = sheet.pictures[0].roll(2, 0), asked(sheet.captions)
    found = judge(plan(sheet, [row("x", sheet, shown, shown[:8])], sheet.pictures[2]), ALONE)["rows"][0]["measures"]
    verdicts = fits(sheet.captions, shown)
    for name, mask in right.items():
        assert found[name]["value"] == pytest.approx(float(verdicts[name][mask].float().mean())), name
    both = [found["all_one"]["value"], found["all_two"]["value"]]
    assert found["all"]["value"] == pytest.approx(sum(both) / 2), "as many captions of one object as of two"
    assert "clip_score" not in found, "an embedder that reads no captions"


def test_what_cannot_be_measured_is_left_out(sheet):
    blind = Sheet("seen", sheet.captions, sheet.pictures, False)
    wide = Embedder("wide", 20, lambda images: images.flatten(1)[:, :20])
    few = plan(blind, [row("x", sheet, sheet.pictures[0], sheet.pictures[1][:2])], sheet.pictures[2], wide, again=2)
    assert few.least == 42
    assert judge(few, ALONE)["rows"][0]["measures"] == {}
    with pytest.raises(ValueError, match="30 pictures do not draw each of 40"):
        ByCaption([], 30, (), "", sheet, MEANS)


def test_the_place_of_a_name_by_counting(generator):
    images, texts = (torch.randn(30, 4, generator=generator) for _ in range(2))
    captions = [f"name {i // 2 if i < 10 else i}" for i in range(30)]
    texts[1:10:2] = texts[0:10:2]  # five names stand for two pictures each
    for i, place in enumerate(place_of_name(images, texts, captions).tolist()):
        cosine = lambda j, i=i: float(F.cosine_similarity(images[i], texts[j], dim=0))
        others = {captions[j] for j in range(30) if captions[j] != captions[i] and cosine(j) > cosine(i)}
        assert place == len(others)
    found = named(images, texts, captions)
    assert found["named_5"].value == pytest.approx(float((place_of_name(images, texts, captions) < 5).float().mean()))
    assert named(texts, texts, captions)["named"].value == 1
    blind = named(images, torch.ones(30, 4), captions)
    assert blind["named_5"].value == 0, "who cannot tell names apart has found none"


def test_names_are_found_beside_real_pictures_and_shuffled_ones(sheet):
    """One that sees the mean colour and knows the one of each caption's picture by heart."""
    first, second, *_ = sheet.pictures
    half = torch.where(torch.arange(40)[:, None, None, None] < 20, first, first.roll(7, 0))
    rows = [row("half", sheet, half, half[:8])]
    unread = Sheet("seen", [f"name {i}" for i in range(40)], sheet.pictures, False)
    centred = lambda images: images.mean((2, 3)) - first.mean((0, 2, 3))
    knowing = Embedder("knowing", 3, centred, read=lambda captions: centred(first[[int(c[5:]) for c in captions]]))
    measures = judge(plan(unread, rows, second, knowing), ALONE)["rows"][0]["measures"]
    assert measures["named"]["value"] == 0.5 and measures["named"]["low"] < 0.5 < measures["named"]["high"]
    real = named(centred(second), centred(first), unread.captions)
    for name in ("named", "named_5"):
        assert measures[f"{name}_real"] == real[name]._asdict()
        assert measures[f"{name}_shuffled"]["value"] < 0.3
    assert set(measures) & set(FITS) == set(), "no oracle"


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Two untrained checkpoints: a clean CLIP and a noised one."""
    monkeypatch.setattr(store, "data_folder", lambda: tmp_path)
    tiny = ["network.width=8", "network.layers=1", "network.heads=2", "network.text_width=8", "network.text_layers=1"]
    for name in ("scenes-clip-noisy", "scenes-clip"):
        recipe = load_recipe(name, [*tiny, "network.text_heads=2", "network.embedding=6"])
        folder = tmp_path / "checkpoints" / name
        torch.manual_seed(0)
        export_weights(recipe.build().state_dict(), folder / "model.safetensors", {"name": name})
        (folder / "card.json").write_text(json.dumps({"name": name, "recipe": recipe.to_plain()}))


def test_a_clip_judges(clips, sheet):
    found = embedder(default_clip(load_recipe("glide").data))
    assert (found.name, found.width, len(found.sha256)) == ("scenes-clip", 6, 64)
    clip, images = store.load("scenes-clip"), sheet.pictures[0]
    assert torch.allclose(found.images(images), clip.embed_images(images), atol=1e-6)
    large = torch.nn.functional.interpolate(images, scale_factor=2)
    assert torch.allclose(found.images(large), found.images(images), atol=1e-5), "averaged down"
    direct = 2.5 * (clip.embed_images(images) * clip.embed_texts(sheet.captions)).sum(1).clamp(min=0)
    assert torch.allclose(clip_score(found.images(images), found.texts(sheet.captions)), direct, atol=1e-5)


def test_what_does_not_judge(clips):
    with pytest.raises(ValueError, match="made for noised images"):
        embedder("scenes-clip-noisy")
    with pytest.raises(ValueError, match="did you mean 'scenes-clip'"):
        embedder("scene-clip")
    with pytest.raises(ValueError, match="no committed CLIP knows emoji"):
        default_clip(DataRecipe("emoji", 16))
