"""Latent diffusion from the command line: both stages are trained, latents are stored, and what is drawn is decoded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.data.sets import load_set
from minidiff.recipes import load_recipe
from minidiff.store import load
from minidiff.systems.bipartite import Bipartite
from minidiff.systems.draw import draw
from minidiff.systems.embeddings import embedded

DATA = ["data.images=24", "data.size=16"]
PLAN = ["training.steps=2", "training.batch=4", "training.warmup=1", "training.precision=bf16"]
STAGE = ["network.size=16", "network.channels=8", "network.groups=4", "network.channel_mult=[1,2]"]
UNET = ["network.size=4", "network.channels=8", "network.groups=4", "network.blocks=1", "network.heads=2",
        "network.attention=[4]", "network.text.width=8", "network.text.layers=1", "network.text.heads=2"]  # fmt: skip
LATENT = ["system.autoencoder=stage", "data.latent=emb/latent", *DATA, *UNET]


def run(*arguments, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("latent")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("minidiff.data.sets.HELDOUT", 8)
        run("train", "scenes-vae", *DATA, *PLAN, *STAGE, "--quiet", "--cpu", "--publish", "stage")
        run("data", "embed-for", "latent-scenes", *LATENT, "--quiet", "--device", "cpu")
        run("train", "latent-scenes", *LATENT, *PLAN, "--quiet", "--cpu", "--publish", "ldm")
        yield place


def test_stored_latents_are_what_the_encoder_says(folder):
    columns = load_set(load_recipe("latent-scenes", LATENT).data)
    with torch.no_grad():
        said = load("stage").moments(columns["image"])
    torch.testing.assert_close(columns["latent"], said, rtol=2e-3, atol=2e-3)  # float16 in the file


def test_the_scale_was_measured_and_travels_with_the_checkpoint(folder):
    columns = load_set(load_recipe("latent-scenes", LATENT).data)
    z = load("ldm").subjects(columns, torch.Generator().manual_seed(0))
    assert abs(z.std().item() - 1) < 0.05
    card = json.loads(Path("ldm/card.json").read_text())
    assert card["recipe"]["system"]["autoencoder"] == "stage" and card["metrics"]["heldout_loss"] > 0


def test_samples_are_pictures(folder):
    run("sample", "ldm", "a red ring above a blue square", "--count", 2, "--steps", 3, "--cpu", "--out", "s.npz")
    pixels = np.load("s.npz")["arr_0"]
    assert pixels.shape == (2, 16, 16, 3)
    run("sample", "ldm", "a red ring", "--count", 2, "--steps", 3, "--cpu", "--out", "s.png")
    assert Image.open("s.png").size[0] >= 16
    assert draw(load("ldm"), 1, levels=2, caption="a small star").shape == (1, 3, 16, 16)


def test_samples_are_judged_as_pictures(folder):
    said = run("evaluate", "ldm", "--captions", 4, "--scale", "1", "--steps", 2, "--cpu", "--json", "e.json")
    assert "s = 1" in said


def test_what_names_no_autoencoder_is_told(folder):
    said = run("data", "embed-for", "glide", "data.latent=emb/other", "--device", "cpu", code=2)
    assert "names data.latent, and no system.autoencoder" in said
    said = run("data", "embed-for", "glide", "--device", "cpu", code=2)
    assert "trains on no embeddings" in said


def test_a_recipe_in_latents_is_costed(folder):
    assert "parameters" in run("train", "latent-scenes", *LATENT, "--dry-run")
    assert "parameters" in run("train", "scenes-vae", *STAGE, "--dry-run")
    assert "latent" in run("sample", "--help-system", "ldm")


DECODER = ["start=", "fresh=[]", "system.autoencoder=stage", "data.latent=emb/latent", "data.embedding=emb/image",
           "data.text_embedding=", "data.explicit=0.5", *DATA, "network.size=4", "network.channels=8",
           "network.groups=4", "network.blocks=1", "network.channel_mult=[1,2]", "network.attention=[4]",
           "network.in_channels=4", "network.out_channels=4", "network.head_channels=8", "network.text.width=16",
           "network.text.layers=1", "network.text.heads=2"]  # fmt: skip


def test_unclip_s_decoder_draws_and_edits_in_latents(folder):
    """Told an embedding of pictures, whose latents it draws; x_T of a picture is that of its latent."""
    run("data", "embed-for", "unclip-decoder", *DECODER, "--quiet", "--device", "cpu")
    run("train", "unclip-decoder", *DECODER, *PLAN, "--quiet", "--cpu", "--publish", "decoder")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save("one.png")
    run("sample", "decoder", "--like", "one.png", "--count", 2, "--steps", 2, "--cpu", "--out", "like.npz")
    assert np.load("like.npz")["arr_0"].shape == (2, 16, 16, 3)
    run("edit", "vary", "one.png", "--decoder", "decoder", "--count", 2, "--steps", 2, "--cpu", "--out", "vary.png")
    system, x = load("decoder"), torch.rand(1, 3, 16, 16) * 2 - 1
    x_T, z = Bipartite(system, 3).encode(x)
    assert x_T.shape == (1, 4, 4, 4) and z.shape == (1, 64)
    assert Bipartite(system, 3).decode(x_T, z).shape == x.shape


def test_a_clip_embeds_larger_pictures_as_it_sees_them(folder):
    """What lies in memory may be a whole number of times as large; it is averaged down, stored and on the way alike."""
    larger = ["data.size=32", "data.images=6", "data.embedding=emb32/image", "data.text_embedding="]
    run("data", "embed-for", "unclip-prior", *larger, "--quiet", "--device", "cpu")
    columns, clip = load_set(load_recipe("unclip-prior", larger).data), load("scenes-clip-strong")
    small = torch.nn.functional.avg_pool2d(columns["image"], 2)
    torch.testing.assert_close(columns["embedding"], embedded(clip, small), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(embedded(clip, columns["image"]), embedded(clip, small))
