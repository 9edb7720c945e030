"""Emoji with captions: from code points to names, what is held out, and what is left out."""

from __future__ import annotations

import io
import os
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minidiff.cli import main
from minidiff.data import emoji
from minidiff.data.emoji import Emoji, caption, heldout, names, words
from minidiff.data.prompts import sheets
from minidiff.data.shards import Shards
from minidiff.data.tokenizer import tokenizer
from minidiff.recipes import DataRecipe
from minidiff.training.data import load_dataset

REAL = os.environ.get("MINIDIFF_DATA")
FILES = {  # code points -> name
    "1f34e": "red apple",
    "1f34f": "green apple",
    "0031_20e3": "keycap 1",
    "2764": "red heart",  # named with a variation selector
    "1f468_200d_1f373": "man cook",
    "1f550": "one o'clock",
}


def picture(side: int = 8) -> bytes:
    """A red square, its left half transparent."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[:, side // 2 :] = (255, 0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """An archive as it is released: every picture in two sizes, skin tones, letters without a name, other files."""
    with zipfile.ZipFile(tmp_path / "emoji.zip", "w") as archive:
        for points in [*FILES, "1f44b_1f3fd", "0031", "1f1e6"]:
            archive.writestr(f"noto-emoji-2.047/png/128/emoji_u{points}.png", picture())
            archive.writestr(f"noto-emoji-2.047/png/32/emoji_u{points}.png", picture(2))
        archive.writestr("noto-emoji-2.047/README.png", picture())
    return tmp_path


def test_pictures_and_their_names(folder):
    found = Emoji(folder)
    assert sorted(found.captions.values()) == sorted(FILES.values()), "no skin tone, no letter, one size"
    assert found.captions["noto-emoji-2.047/png/128/emoji_u1f34e.png"] == "red apple"
    image, text = found[0]
    assert text in FILES.values() and image.shape == (3, 8, 8)
    assert bool((image[:, :, :4] == 1).all()), "white where it is transparent"
    assert image[:, 0, 7].tolist() == [1, -1, -1]
    assert Emoji(folder / "emoji.zip", 4)[0][0].shape == (3, 4, 4)


def test_a_folder_of_files(folder):
    with zipfile.ZipFile(folder / "emoji.zip") as archive:
        archive.extractall(folder / "loose")
    assert set(Emoji(folder / "loose").captions.values()) == set(FILES.values())


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (":red_apple:", "red apple"),
        (":one_o\u2019clock:", "one o'clock"),
        (":pi\u00f1ata:", "pinata"),
        (":A_button_(blood_type):", "a button blood type"),
        (":keycap_#:", "keycap #"),
        (":medium-dark_skin_tone:", "medium dark skin tone"),
    ],
)
def test_names_as_plain_words(name, plain):
    assert caption(name) == plain


def test_held_out_captions_are_made_of_words_that_training_sees():
    every = sorted(set(names().values()))
    held = heldout(every)
    seen = {word for text in every if text not in held for word in text.split()}
    assert 0.05 < len(held) / len(every) < 0.25
    assert all(seen.issuperset(text.split()) for text in held)
    assert heldout(every[::-1]) == held


def test_the_splits_part_the_set(folder, monkeypatch):
    monkeypatch.setattr(emoji, "heldout", lambda captions: {"green apple"})
    parts = {split: set(Emoji(folder, split=split).captions.values()) for split in ("all", "train", "heldout")}
    assert parts["heldout"] == {"green apple"} and parts["train"] == parts["all"] - parts["heldout"]


def test_what_is_not_there(folder, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split must be one of all, train, heldout; got 'test'"):
        Emoji(folder, split="test")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cat.png").write_bytes(picture())
    with pytest.raises(ValueError, match=r"no emoji in .*other: files such as png/128/emoji_u1f34e.png"):
        Emoji(tmp_path / "other")
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match="MINIDIFF_DATA"):
        Emoji()
    names.cache_clear()
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(ValueError, match="pip install emoji"):
        Emoji(folder)


def test_names_that_the_vocabulary_lacks_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(emoji, "words", lambda: tuple(set(words()) - {"keycap"}))
    assert set(Emoji(folder).captions.values()) == set(FILES.values()) - {"keycap 1"}


def test_the_tokenizer_reads_every_caption_it_can_meet(folder):
    read = tokenizer("emoji")
    assert read.size == len(words()) == len(set(words()))
    texts = list(Emoji(folder).captions.values())
    assert read.decode(read(texts)) == texts
    with pytest.raises(ValueError, match="no word 'applee' here: did you mean 'apple'"):
        read(["red applee"])


def test_a_training_set(folder):
    recipe = DataRecipe("emoji", path=str(folder), tokenizer="emoji")
    found = load_dataset(recipe, 4)
    images, tokens = found.tensors
    assert images.shape == (len(found), 3, 4, 4) and tokens.shape == (len(found), emoji.CONTEXT)
    texts = tokenizer("emoji").decode(tokens)
    assert texts == list(Emoji(folder, split="train").captions.values())
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        load_dataset(DataRecipe("emoji", path=str(folder)), 4)


def test_shards_with_captions(folder, tmp_path):
    pytest.importorskip("webdataset")
    arguments = ["data", "pack", "emoji", str(tmp_path / "out"), "--root", str(folder), "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    packed = Shards(tmp_path / "out", targets="txt")
    assert sorted(packed[i][1] for i in range(len(packed))) == sorted(FILES.values())
    pictures = {text: image for image, text in (Emoji(folder)[i] for i in range(6))}
    assert all(torch.equal(packed[i][0], pictures[packed[i][1]]) for i in range(6))


def test_download_puts_the_archive_where_it_is_looked_for(monkeypatch, tmp_path):
    def fetch(url, target, quiet):
        asked.append(url)
        target.write_bytes(b"x" * 2_000_000)
        return emoji.Downloaded(target, 2_000_000, "checked")

    asked = []
    monkeypatch.setattr(emoji, "fetch", fetch)
    result = CliRunner().invoke(main, ["data", "download", "emoji", "--root", str(tmp_path), "--quiet"])
    assert result.exit_code == 0 and result.output == f"{tmp_path / 'emoji.zip'}: 2.0 MB; checked\n"
    assert asked == [emoji.URL] and emoji.URL.startswith("https://github.com/googlefonts/noto-emoji/archive/")


@pytest.mark.skipif(REAL is None, reason="MINIDIFF_DATA names no folder with real data")
def test_the_real_archive(monkeypatch, tmp_path):
    found = Emoji()
    texts = list(found.captions.values())
    assert 1500 < len(texts) == len(set(texts)) < 2500
    image = found[texts.index("red apple")][0]
    middle = image[:, 40:90, 40:90].mean((1, 2))
    assert middle[0] > 0.3 and middle[1:].max() < 0, "it is red"
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert sum(len(Emoji(split=split)) for split in ("train", "heldout")) == len(texts)
    committed = set(words())
    monkeypatch.setattr(emoji, "WORDS", tmp_path / "words.txt")
    emoji.write_words()
    assert set(words()) == committed, "the file is what the function makes"


@pytest.mark.skipif(REAL is None, reason="MINIDIFF_DATA names no folder with real data")
def test_sheets_of_real_captions():
    held, seen = sheets(DataRecipe("emoji", tokenizer="emoji"), 8)
    every = set(Emoji(split="heldout").captions.values())
    assert len(held.captions) == len(seen.captions) == len(every) and set(held.captions) == every
    assert not set(seen.captions) & set(held.captions) and len(held.pictures) == 1 and not held.grammar
    first = list(Emoji(size=8, split="heldout").captions.values()).index(held.captions[0])
    assert torch.equal(held.pictures[0][0], Emoji(size=8, split="heldout")[first][0]), "each with its picture"
    with pytest.raises(ValueError, match=r"captions in one of its parts, not 10000"):
        sheets(DataRecipe("emoji", tokenizer="emoji"), 8, 10_000)
