"""Stable Diffusion's files: every layout gives one function, that of diffusers and transformers; and a picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers import awake, seeded
from safetensors.torch import save_file

from minidiff import recipes, stable
from minidiff.cli import main
from minidiff.guidance import cfg
from minidiff.pretrained import load, preset
from minidiff.recipes import load_recipe
from minidiff.schedule import respaced
from minidiff.systems.draw import draw

PROMPT = "A painting of a squirrel, eating a burger."
UNET = {"channels": 32, "channel_mult": [1, 2], "size": 8, "attention": [8, 4], "token_width": 16, "heads": 4}
VAE = {"size": 32, "channels": 32, "channel_mult": [1, 1, 2]}
TOWER = {"width": 16, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """The recipes of Stable Diffusion 1 in a small size."""
    place = tmp_path_factory.mktemp("recipes")
    for name, shape in (("sd15", UNET), ("sd-vae", VAE), ("sd-text", TOWER)):
        plain = yaml.safe_load((recipes.FOLDER / f"{name}.yaml").read_text())
        plain["network"] |= shape
        plain["data"]["size"] = 32
        (place / f"{name}.yaml").write_text(yaml.safe_dump(plain))
    return place


@pytest.fixture
def small(sized, monkeypatch):
    """These in the place of those of the package."""
    monkeypatch.setattr(recipes, "FOLDER", sized)


@pytest.fixture(scope="module")
def theirs():
    """The same networks of diffusers and transformers, with random weights everywhere."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,
        cross_attention_dim=16,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=4,
    )
    shape = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(**shape, vocab_size=49408, hidden_act="quick_gelu", eos_token_id=49407))
    return {
        name: awake(network, 0.1, seed, torch.float32)
        for seed, (name, network) in enumerate({"unet": unet, "vae": vae, "text_encoder": text}.items())
    }


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """A folder as diffusers keeps it, its text tower under the names of released files."""
    place = tmp_path_factory.mktemp("diffusers")
    for name, network in theirs.items():
        (place / name).mkdir()
        tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
        if name == "text_encoder":
            tensors = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in tensors.items()}
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, place / name / f"{stem}.safetensors")
    return place


def padded(text: str) -> torch.Tensor:
    """(1, 77) tokens as the tokenizer of Stable Diffusion 1 gives them: start, tokens, and the end again and again."""
    from open_clip.tokenizer import SimpleTokenizer

    tokens = [49406, *SimpleTokenizer().encode(text), 49407]
    return torch.tensor([tokens + [49407] * (77 - len(tokens))])


def test_it_draws_what_diffusers_networks_draw(small, folder, theirs):
    """DDIM with guidance, spelled out with their networks, from tokens to pixels."""
    system, x = load("sd15", folder), torch.randn(1, 4, 8, 8, generator=seeded())
    chain = respaced(system.schedule, 4)
    ours = draw(system, 1, guide=cfg(7.5), levels=chain, x_T=x, caption=PROMPT)
    with torch.no_grad():
        told, nothing = (theirs["text_encoder"](padded(text)).last_hidden_state for text in (PROMPT, ""))
        for now, then in pairwise(chain):
            e_c, e_n = (theirs["unet"](x, now.time, encoder_hidden_states=states).sample for states in (told, nothing))
            e = e_n + 7.5 * (e_c - e_n)
            x = then.alpha * (x - now.sigma * e) / now.alpha + then.sigma * e
        expected = theirs["vae"].decode(x / 0.18215).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_schedule_is_theirs():
    from diffusers import DDIMScheduler

    released = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    ours = load_recipe("sd15").schedule.build()
    torch.testing.assert_close(ours.alpha_bar.float(), released.alphas_cumprod, rtol=1e-4, atol=1e-6)


def original(system, averaged: bool = False) -> dict[str, torch.Tensor]:
    """What a file of the first release holds of a system and what it was lent, with what else lies in such files."""
    tower = system.part("caption").lent.network
    vae, unet = system.latents.lent.network.state_dict(), system.network.state_dict()
    tensors = {f"first_stage_model.{k}": v for k, v in vae.items()}
    tensors |= {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    if averaged:
        tensors |= {f"model_ema.diffusion_model{k.replace('.', '')}": v + 1 for k, v in unet.items()}
    text = stable.tower("transformers", "cond_stage_model.transformer.text_model.")(tower)
    for name, parts in text.items():
        shares = tower.state_dict()[name].chunk(len(parts))
        tensors |= dict(zip(parts, (share.contiguous() for share in shares), strict=True))
    place = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return tensors | {"betas": torch.zeros(1000), "scale_factor": torch.tensor(0.18215), place: torch.arange(77)[None]}


def same(a, b) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_file_of_the_first_release_is_the_same_as_a_folder(small, folder, tmp_path):
    one = load("sd15", folder)
    torch.save({"state_dict": original(one), "global_step": 470000}, tmp_path / "sd.ckpt")
    save_file(original(one), tmp_path / "sd.safetensors")
    for file in ("sd.ckpt", "sd.safetensors"):
        other = load("sd15", tmp_path / file)
        assert same(one.network, other.network)
        assert same(one.latents.lent.network, other.latents.lent.network)
        assert same(one.part("caption").lent.network, other.part("caption").lent.network)


def test_averaged_weights_come_first(small, folder):
    one = load("sd15", folder)
    other = load("sd15", original(one, averaged=True))
    assert all(torch.equal(v + 1, other.network.state_dict()[k]) for k, v in one.network.state_dict().items())


def test_half_precision_is_widened(small, folder):
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in original(load("sd15", folder)).items()}
    assert {p.dtype for p in load("sd15", tensors).parameters()} == {torch.float32}


def test_a_file_with_the_u_net_alone_says_what_it_lacks(small, folder):
    alone = {k: v for k, v in original(load("sd15", folder)).items() if k.startswith("model.")}
    system = load("sd15", alone)
    with pytest.raises(ValueError, match="the caption is read by sd-text, which this system was not lent"):
        draw(system, 1, levels=2, caption="a dog")


def test_what_is_missing_or_does_not_fit_is_named(small, folder, tmp_path):
    tensors = original(load("sd15", folder))
    name = "model.diffusion_model.out.2.bias"
    with pytest.raises(ValueError, match=r"its U-Net lacks 1 tensors, model\.diffusion_model\.out\.2\.bias"):
        load("sd15", {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match=r"out\.2\.bias of \(3,\) does not fit \(4,\)"):
        load("sd15", tensors | {name: torch.zeros(3)})
    with pytest.raises(ValueError, match="holds no U-Net of latent diffusion"):
        load("sd15", {"weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="holds none of unet, vae and text_encoder"):
        load("sd15", tmp_path)


def test_from_words_to_a_picture_on_the_command_line(small, folder, tmp_path):
    out = tmp_path / "drawn.npz"
    command = ["sample", "sd15", PROMPT, "--weights", folder, "--count", 2, "--steps", 2, "--cpu", "--out", out]
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    assert "s = 7.5" in result.output
    assert np.load(out)["arr_0"].shape == (2, 32, 32, 3)
    command[-1] = tmp_path / "drawn.png"
    result = CliRunner().invoke(main, [str(word) for word in command])
    assert result.exit_code == 0 and Path(command[-1]).stat().st_size > 1000


def test_the_second_tower_is_open_clip_s():
    """Without its last block, its states after the last norm, padded with zeros; OpenCLIP's own names."""
    import open_clip

    from minidiff.models.text_tower import TextTower, TextTowerConfig

    torch.manual_seed(0)
    vision = {"image_size": 8, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
    clip = awake(open_clip.CLIP(12, vision, text), 0.1, dtype=torch.float32)
    ours = TextTower(TextTowerConfig(width=16, layers=2, heads=2, quick=False, padding=0))
    published = {f"cond_stage_model.model.{k}": v for k, v in clip.state_dict().items()}
    assert stable.fill(ours, "text", published, "the tower")
    tokens = open_clip.get_tokenizer("ViT-B-32")([PROMPT])
    x = clip.token_embedding(tokens) + clip.positional_embedding
    for block in clip.transformer.resblocks[:-1]:
        x = block(x, attn_mask=clip.attn_mask)
    said = tokens[:, 1 : int(tokens.argmax())]
    torch.testing.assert_close(ours(said), clip.ln_final(x), rtol=1e-4, atol=1e-5)


def test_towers_and_autoencoders_are_counted_as_published():
    counted = {"sd-vae": 83_653_863, "sd-text": 123_060_480, "sd2-text": 340_387_840, "ldm-kl-f8": 83_653_863}
    for name, count in counted.items():
        assert sum(p.numel() for p in load_recipe(name).build(empty=True).network.parameters()) == count
    vq = load_recipe("ldm-vq-f4", ["system.adversarial=0"]).build(empty=True).network
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (vq.encoder, vq.decoder)]
    assert [f"{count:.2f}" for count in counts] == ["22.34", "32.96"]


@pytest.mark.parametrize("name", ["sd15", "sd15-inpaint", "sd2-base", "sd2", "ldm-cin256", "ldm-churches", "ldm-sr"])
def test_presets_are_told_what_they_were_trained_with(name):
    told = {
        "sd15-inpaint": ["caption", "known"],
        "ldm-cin256": ["label"],
        "ldm-churches": [],
        "ldm-sr": ["low_res"],
    }
    system = preset(name).recipe.build(empty=True)
    assert [part.key for part in system.parts] == told.get(name, ["caption"])
    assert system.threshold is None and system.predicts == ("v" if name == "sd2" else "eps")
