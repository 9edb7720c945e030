"""unCLIP from the command line: embeddings, training, drawing through a prior, and edits of a picture of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.guidance import cfg
from minidiff.pictures import read_picture
from minidiff.pixels import to_uint8
from minidiff.random import sample_generators
from minidiff.store import load
from minidiff.systems.bipartite import Bipartite
from minidiff.systems.draw import cascade, draw
from minidiff.systems.embeddings import embedded

DATA = ["data.images=40", "data.embedding=emb/image", "data.text_embedding=emb/text", "system.clip=scenes-clip"]
PLAN = ["training.steps=2", "training.batch=4", "training.warmup=1"]
SMALL = {
    "unclip-prior": ["network.width=16", "network.layers=1", "network.heads=2"],
    "unclip-ar-prior": ["network.width=16", "network.layers=1", "network.heads=2", "network.components=3"],
    "unclip-decoder": ["start=", "fresh=[]", "network.channels=8", "network.blocks=1", "network.groups=4",
                       "network.channel_mult=[1,2,2]", "network.head_channels=8", "network.text.width=16",
                       "network.text.layers=1", "network.text.heads=2"],
}  # fmt: skip
UP = ["network.channels=8", "network.groups=4", "data.images=4", "data.size=32", "network.size=32", "system.factor=2"]
CAPTIONS = ["a red ring above a blue square", "a small star"]


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all systems of unCLIP were trained for two steps and published."""
    place = tmp_path_factory.mktemp("unclip")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("minidiff.data.sets.HELDOUT", 8)
        run("data", "embed-for", "unclip-prior", *DATA, "--quiet", "--device", "cpu")
        for name, shape in SMALL.items():
            run("train", name, *DATA, *PLAN, *shape, "--quiet", "--cpu", "--publish", name)
        run("train", "unclip-up64", *PLAN, *UP, "--quiet", "--cpu", "--publish", "unclip-up32")
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save("one.png")
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)).save("two.png")
        yield place


def test_embeddings_are_those_of_the_clip_in_the_order_of_the_data(folder):
    from minidiff.data.sets import load_set
    from minidiff.recipes import load_recipe

    recipe = load_recipe("unclip-prior", DATA)
    columns, clip = load_set(recipe.data), load("scenes-clip")
    for name, what in (("embedding", columns["image"]), ("text_embedding", columns["caption"])):
        torch.testing.assert_close(columns[name], embedded(clip, what), rtol=2e-3, atol=2e-3)  # float16 in the file
    with pytest.raises(ValueError, match="are of other data"):
        load_set(load_recipe("unclip-prior", [*DATA, "data.seed=1"]).data)
    with pytest.raises(ValueError, match=r"computes what data\.embedding names"):
        load_set(load_recipe("unclip-prior", [*DATA, "data.embedding=elsewhere"]).data)
    before = {path: path.stat().st_mtime_ns for path in Path("emb").rglob("*.tar")}
    run("data", "embed-for", "unclip-decoder", *DATA, "--quiet", "--device", "cpu")
    assert before and all(path.stat().st_mtime_ns == then for path, then in before.items()), "once is enough"


def test_statistics_travel_with_the_checkpoint(folder):
    prior = load("unclip-prior")
    assert bool((prior.network.scale.std > 0).all()) and not bool((prior.network.scale.mean == 0).any())
    torch.testing.assert_close(prior.network.scale.mean, load("unclip-decoder").network.embedding.scale.mean)


@pytest.mark.parametrize("first", ["unclip-prior", "unclip-ar-prior"])
def test_sample_draws_through_prior_and_decoder(folder, first):
    options = ["--upsample", "unclip-decoder", "--upsample", "unclip-up32", "--steps", 2, "--count", 3, "--scale", 2]
    run("sample", first, *CAPTIONS, *options, "--cpu", "--out", "x.npz")
    found = np.load("x.npz")
    systems = [load(name) for name in (first, "unclip-decoder", "unclip-up32")]
    own = {"scale": 1.0} if first == "unclip-ar-prior" else {"levels": 2}
    stages = list(
        zip(systems, [own, {"levels": 2, "guide": cfg(2.0)}, {"levels": 8}], strict=True)
    )  # its recipe says 8
    captions = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]]
    expected = cascade(stages, 3, sample_generators(0, range(3)), caption=captions)
    assert np.abs(found["arr_0"].astype(int) - to_uint8(expected).permute(0, 2, 3, 1).numpy()).max() <= 1
    assert found["arr_1"].tolist() == [0, 1, 0]


def test_a_stack_has_one_name(folder, monkeypatch):
    monkeypatch.setattr("minidiff.store.STACKS", {"stack": ("unclip-prior", "unclip-decoder")})
    options = ["--steps", 2, "--count", 2, "--scale", 2, "--cpu"]
    run("sample", "stack", *CAPTIONS, *options, "--out", "x.npz")
    run("sample", "unclip-prior", *CAPTIONS, "--upsample", "unclip-decoder", *options, "--out", "y.npz")
    assert np.array_equal(np.load("x.npz")["arr_0"], np.load("y.npz")["arr_0"])
    text = run("sample", "--help-system", "stack")
    assert "unclip_prior" in text and "embedding: can be nothing" in text and "--like" in text


def test_a_decoder_alone_draws_from_a_caption_or_like_a_picture(folder):
    run("sample", "unclip-decoder", CAPTIONS[0], "--steps", 2, "--count", 2, "--cpu", "--out", "x.npz")
    run("sample", "unclip-decoder", "--like", "one.png", "--steps", 2, "--count", 2, "--cpu", "--out", "y.npz")
    like = draw(load("unclip-decoder"), 2, levels=2, generator=sample_generators(0, range(2)),
                embedding=read_picture("one.png", 16)[None])  # fmt: skip
    drawn = np.load("y.npz")["arr_0"].astype(int)
    assert np.abs(drawn - to_uint8(like).permute(0, 2, 3, 1).numpy()).max() <= 1
    assert not np.array_equal(drawn, np.load("x.npz")["arr_0"])
    assert "draws embeddings" in run("sample", "unclip-prior", CAPTIONS[0], "--steps", 2, "--cpu", code=2)


def test_a_picture_is_its_embedding_and_its_noise(folder):
    """The round trip of an untrained network is smooth: its error falls with the steps."""
    decoder, x = load("unclip-decoder"), read_picture("one.png", 16)[None]
    errors = []
    for levels in (20, 40, 80):
        both = Bipartite(decoder, levels)
        x_T, z = both.encode(x)
        assert z.shape == (1, 64) and x_T.shape == x.shape
        errors.append(float((both.decode(x_T, z) - x).square().mean().sqrt()))
    assert errors[0] > errors[1] > errors[2]
    both = Bipartite(decoder, 20)
    x_T, z = both.encode(x)
    torch.testing.assert_close(both.variations(x, 3, eta=0.0), both.decode(x_T, z).expand(3, -1, -1, -1))
    many = both.variations(x, 3, eta=1.0, generator=sample_generators(0, range(3)))
    assert not torch.allclose(many[0], many[1], atol=1e-2)
    ends = both.interpolate(x, read_picture("two.png", 16)[None], [0.0, 0.5, 1.0])
    torch.testing.assert_close(ends[:1], both.decode(x_T, z), rtol=1e-3, atol=1e-3)
    turned = both.text_diff(x, CAPTIONS[0], CAPTIONS[1], [0.0, 0.4])
    torch.testing.assert_close(turned[:1], both.decode(x_T, z), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(turned[0], turned[1], atol=1e-4)
    with pytest.raises(ValueError, match="told an image embedding"):
        Bipartite(load("glide"))


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (["vary", "one.png", "--count", 3, "--eta", 0.8], 4),
        (["interpolate", "one.png", "two.png", "--count", 3], 5),
        (["interpolate", "one.png", "two.png", "--count", 2, "--fixed-noise"], 4),
        (["text", "one.png", "--from", "a red ring", "--to", "a blue ring", "--count", 2], 3),
    ],
)
def test_edit_writes_a_grid_and_its_numbers(folder, arguments, count):
    options = ["--decoder", "unclip-decoder", "--steps", 3, "--cpu", "--upsample", "unclip-up32"]
    said = run("edit", *arguments, *options, "--out", "edit.png")
    assert f"after `{arguments[0]}`" in said
    width, height = Image.open("edit.png").size
    columns = int(np.ceil(np.sqrt(count)))
    assert (width + 1) // columns >= 32 and height > 0
    assert json.loads(Path("edit.json").read_text())["action"] == arguments[0]


def test_edit_refuses_in_one_line(folder):
    for arguments, message in (
        (["vary", "one.png", "--decoder", "glide"], "glide is told no image embedding"),
        (["vary", "one.png", "--decoder", "unclip-decoder", "--out", "x.jpg"], "must end in .png"),
        (["vary", "one.png", "--decoder", "unclip-decoder", "--upsample", "unclip-decoder"], "takes what enlarges"),
        (["text", "one.png", "--decoder", "unclip-decoder", "--to", "a redd ring"], "no word 'redd' here"),
    ):
        text = run("edit", *arguments, "--steps", 2, "--cpu", code=2)
        assert message in text and len(text.strip().splitlines()) == 1


def test_edit_proves_its_outputs_before_the_work(folder):
    vary = ["edit", "vary", "one.png", "--decoder", "unclip-decoder", "--steps", 2, "--cpu"]
    Path("mine.json").write_text('{"mine": 1}')
    for options, message in (
        (["--out", "mine.png"], "would be replaced; choose another --out"),
        (["--out", "one.png/x.png"], "cannot be written"),
        (["--scale", "nan"], "a finite number is accepted"),
    ):
        text = run(*vary, *options, code=2)
        assert message in text and len(text.strip().splitlines()) == 1
    assert Path("mine.json").read_text() == '{"mine": 1}' and not Path("mine.png").exists()
