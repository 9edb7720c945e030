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
from minidiff.data.recipe import DataRecipe
from minidiff.data.sets import load_dataset
from minidiff.data.shards import Shards
from minidiff.data.tokenizer import tokenizer

REAL = os.environ.get("MINIDIFF_DATA")
FILES = {  # code points -> name
    "1f34e": "red apple",
    "1f34f": "green apple",
    "0031_20e3": "keycap 1",
    "2764": "red heart",  # named with a variation selector
    "1f468_200d_1f373": "man cook",
    "1f550": "one o'clock",
}
RENDERED = ["1f34e", "1f34f", "1f436", "23_20e3"]  # apples, "dog face" and "keycap #" without its zeros


def picture(side: int = 8, color=(255, 0, 0), hidden=(0, 0, 0), kind: str = "PNG") -> bytes:
    """A red square, its left half transparent."""
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[:, : side // 2, :3] = hidden
    pixels[:, side // 2 :] = (*color, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


HANDS = ("noto", "fluent")


def both(*arguments, **options) -> Emoji:
    """Emoji by both hands."""
    return Emoji(*arguments, hands=HANDS, **options)


@pytest.fixture
def folder(tmp_path):
    """Both archives; Noto's as it is released: every picture in two sizes, skin tones, letters, other files."""
    with zipfile.ZipFile(tmp_path / "emoji.zip", "w") as archive:
        for points in [*FILES, "1f44b_1f3fd", "0031", "1f1e6"]:
            archive.writestr(f"noto-emoji-2.047/png/128/emoji_u{points}.png", picture())
            archive.writestr(f"noto-emoji-2.047/png/32/emoji_u{points}.png", picture(2))
        archive.writestr("noto-emoji-2.047/README.png", picture())
    with zipfile.ZipFile(tmp_path / "fluent.zip", "w") as archive:
        for points in [*RENDERED, "1f44b_1f3fd", "1f1e9_1f1ea"]:
            archive.writestr(f"webp/96/emoji_u{points}.webp", picture(6, (0, 0, 255), (0, 255, 0), "WEBP"))
    return tmp_path


def noto(folder, *arguments, **options) -> Emoji:
    return Emoji(folder, *arguments, hands=("noto",), **options)


def test_pictures_and_their_names(folder):
    found = noto(folder)
    assert sorted(found.captions.values()) == sorted(FILES.values()), "no skin tone, no letter, one size"
    assert found.captions["noto-emoji-2.047/png/128/emoji_u1f34e.png"] == "red apple"
    image, text = found[0]
    assert text in FILES.values() and image.shape == (3, 8, 8)
    assert bool((image[:, :, :4] == 1).all()), "white where it is transparent"
    assert image[:, 0, 7].tolist() == [1, -1, -1]
    assert noto(folder / "emoji.zip", 4)[0][0].shape == (3, 4, 4)


def test_two_hands(folder):
    found = both(folder)
    assert found.classes == ("noto", "fluent") and found.labels.bincount().tolist() == [len(FILES), len(RENDERED)]
    assert found.texts[len(FILES) :] == ("red apple", "green apple", "dog face", "keycap #")
    for i, (hand, text, spoken) in enumerate(zip(found.labels, found.texts, found.spoken, strict=True)):
        assert spoken == f"{('drawn', 'rendered')[hand]} {text}" and found[i][1] == text
        assert found[i][0][:, -1, -1].tolist() == [[1, -1, -1], [-1, -1, 1]][hand], "each archive its own pictures"
    assert Emoji(folder, hands=("fluent",)).texts == found.texts[len(FILES) :]


def test_no_colour_of_hidden_pixels_at_the_edges(folder):
    """At half the size and less, edges mix the picture with white: as much green as red, green as it is below."""
    for size in (2, 3, 4):
        image = Emoji(folder, size, hands=("fluent",))[0][0]
        assert torch.allclose(image[0], image[1], atol=1 / 127) and bool((image[2] > 1 - 1 / 127).all())


def test_no_word_for_a_hand_is_one_of_a_name():
    spoken = {word for text in names().values() for word in text.split()}
    assert not spoken & {hand.word for hand in emoji.HANDS.values()}
    assert max(len(text.split()) for text in names().values()) < emoji.CONTEXT


def test_a_folder_of_files(folder):
    with zipfile.ZipFile(folder / "emoji.zip") as archive:
        archive.extractall(folder / "loose")
        archive.extract("noto-emoji-2.047/README.png", folder / "none")
    with zipfile.ZipFile(folder / "fluent.zip") as archive:
        archive.extractall(folder / "loose")
    assert sorted(both(folder / "loose").spoken) == sorted(both(folder).spoken)


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
    found = {split: both(folder, split=split) for split in ("all", "train", "heldout")}
    parts = {split: set(part.texts) for split, part in found.items()}
    assert parts["heldout"] == {"green apple"} and parts["train"] == parts["all"] - parts["heldout"]
    assert found["heldout"].spoken == ("drawn green apple", "rendered green apple"), "no hand of it is seen"


def test_what_is_not_there(folder, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="split must be one of all, train, heldout; got 'test'"):
        both(folder, split="test")
    with pytest.raises(ValueError, match="at least one hand"):
        Emoji(folder, hands=())
    with pytest.raises(ValueError, match=r"nobody called 'fluant' drew emoji: did you mean 'fluent'"):
        Emoji(folder, hands=("noto", "fluant"))
    (folder / "fluent.zip").unlink()
    with pytest.raises(ValueError, match=r"no emoji by fluent: .*; fluent\.zip comes from npm pack @lobehub/"):
        both(folder)
    assert len(noto(folder)) == len(FILES)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/cat.png").write_bytes(picture())
    with pytest.raises(ValueError, match=r"no emoji by noto in .*other: files such as emoji_u1f34e\.png are accepted"):
        Emoji(tmp_path / "other")
    monkeypatch.delenv("MINIDIFF_DATA", raising=False)
    with pytest.raises(ValueError, match="MINIDIFF_DATA"):
        both()
    names.cache_clear()
    monkeypatch.setitem(sys.modules, "emoji", None)
    with pytest.raises(ValueError, match="pip install emoji"):
        both(folder)


def test_names_that_the_vocabulary_lacks_are_left_out(folder, monkeypatch):
    monkeypatch.setattr(emoji, "words", lambda: tuple(set(words()) - {"keycap"}))
    assert set(noto(folder).texts) == set(FILES.values()) - {"keycap 1"}
    assert len(both(folder)) == len(FILES) - 1 + len(RENDERED) - 1


def test_the_tokenizer_reads_every_caption_it_can_meet(folder):
    read = tokenizer("emoji-hands")
    assert read.size == len(set(words())) + 2 == tokenizer("emoji").size + 2
    found = both(folder)
    texts = [*found.texts, *found.spoken]
    assert read.decode(read(texts)) == texts
    with pytest.raises(ValueError, match="no word 'applee' here: did you mean 'apple'"):
        read(["red applee"])


def test_a_training_set(folder):
    recipe = DataRecipe("emoji", 4, path=str(folder), tokenizer="emoji-hands", hands=HANDS)
    found = load_dataset(recipe)
    images, tokens = found.columns["image"], found.columns["caption"]
    assert images.shape == (len(found), 3, 4, 4) and tokens.shape == (len(found), emoji.CONTEXT)
    train = both(folder, 4, split="train")
    assert tokenizer("emoji-hands").decode(tokens) == [*train.texts, *train.spoken], "each picture under both its names"
    assert all(torch.equal(images[i], train[i % len(train)][0]) for i in range(len(found)))
    one = load_dataset(DataRecipe("emoji", 4, path=str(folder), tokenizer="emoji"))
    assert tokenizer("emoji").decode(one.columns["caption"]) == list(noto(folder, split="train").texts)
    with pytest.raises(ValueError, match=r"data\.tokenizer"):
        load_dataset(DataRecipe("emoji", 4, path=str(folder)))


@pytest.mark.parametrize("size", [None, 4])
def test_shards_with_captions(folder, tmp_path, size):
    pytest.importorskip("webdataset")
    arguments = ["data", "pack", "emoji", str(tmp_path / "out"), "--root", str(folder), "--quiet"]
    result = CliRunner().invoke(main, arguments + ([] if size is None else ["--size", str(size)]))
    assert result.exit_code == 0, result.output
    packed, found = Shards(tmp_path / "out", targets="txt"), Emoji(folder, size)
    pictures = {(int(hand), found.texts[i]): found[i][0] for i, hand in enumerate(found.labels)}
    assert len(packed) == len(pictures) == len(found)
    for i, hand in enumerate(packed.labels.tolist()):
        assert torch.equal(packed[i][0], pictures[hand, packed[i][1]])


def test_download_puts_the_archive_where_it_is_looked_for(monkeypatch, tmp_path):
    def fetch(url, target, quiet):
        asked.append(url)
        target.write_bytes(b"x" * 2_000_000)
        return emoji.Downloaded(target, 2_000_000, "checked")

    asked = []
    monkeypatch.setattr(emoji, "fetch", fetch)
    result = CliRunner().invoke(main, ["data", "download", "emoji", "--root", str(tmp_path), "--quiet"])
    assert result.exit_code == 0 and result.output.startswith(f"{tmp_path / 'emoji.zip'}: 2.0 MB; checked; ")
    assert "fluent.zip, comes from npm pack @lobehub/fluent-emoji-3d (MIT" in result.output
    assert asked == [emoji.URL] and emoji.URL.startswith("https://github.com/googlefonts/noto-emoji/archive/")


@pytest.mark.skipif(REAL is None, reason="MINIDIFF_DATA names no folder with real data")
def test_the_real_archives(monkeypatch, tmp_path):
    found = both()
    drawn, rendered = (set(Emoji(hands=(hand,)).texts) for hand in ("noto", "fluent"))
    assert 1500 < len(drawn) < 2500 and len(drawn & rendered) > 0.9 * len(drawn | rendered)
    assert len(found) == len(set(found.spoken)) == len(drawn) + len(rendered)
    for hand in ("drawn", "rendered"):
        image = found[found.spoken.index(f"{hand} red apple")][0]
        side = image.shape[1]
        middle = image[:, side // 3 : 2 * side // 3, side // 3 : 2 * side // 3].mean((1, 2))
        assert middle[0] > 0.3 and middle[1:].max() < 0, "it is red"
        assert image[:, 0, 0].tolist() == [1, 1, 1]
    train, held = (both(split=split) for split in ("train", "heldout"))
    assert len(train) + len(held) == len(found)
    seen = {word for text in train.texts for word in text.split()}
    assert all(seen.issuperset(text.split()) for text in held.texts)
    for hand in ("noto", "fluent"):
        assert set(Emoji(split="heldout", hands=(hand,)).texts) <= set(held.texts), "one split for all hands"
    committed = set(words())
    monkeypatch.setattr(emoji, "WORDS", tmp_path / "words.txt")
    emoji.write_words()
    assert set(words()) == committed, "the file is what the function makes"


@pytest.mark.skipif(REAL is None, reason="MINIDIFF_DATA names no folder with real data")
def test_sheets_of_real_captions():
    held, seen = sheets(DataRecipe("emoji", 8, tokenizer="emoji-hands", hands=HANDS), 8, 100)
    found = both(size=8, split="heldout")
    assert len(held.captions) == len(set(held.captions)) == len(seen.captions) == 100
    assert set(held.captions) <= set(found.texts) and not set(seen.captions) & set(found.texts) and not held.grammar
    hands = {0, 1}
    for text, *pictures in zip(held.captions, *held.pictures, strict=True):
        of_it = {int(found.labels[i]): found[i][0] for i, other in enumerate(found.texts) if other == text}
        shown = [hand for picture in pictures for hand, image in of_it.items() if torch.equal(picture, image)]
        assert len(shown) == len(pictures), "each with its pictures"
        hands -= {shown[0]}
    assert not hands, "some by each hand"
    with pytest.raises(ValueError, match=r"captions in one of its parts, not 10000"):
        sheets(DataRecipe("emoji", 8, tokenizer="emoji-hands", hands=HANDS), 8, 10_000)
