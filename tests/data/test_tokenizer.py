"""Captions into tokens: words, CLIP's pairs of bytes and GPT-2's."""

from __future__ import annotations

import json

import pytest
import torch

from minidiff.data.captions import VOCABULARY, sample_captions
from minidiff.data.scenes import sample_scenes
from minidiff.data.tokenizer import GlideTokenizer, tokenizer


def test_words_of_the_grammar_round_trip():
    scenes = tokenizer("scenes")
    captions = sample_captions(
        sample_scenes(300, torch.Generator().manual_seed(0), 2), torch.Generator().manual_seed(1)
    )
    tokens = scenes(captions)
    assert tokens.shape == (300, scenes.context) and tokens.dtype == torch.long
    assert scenes.decode(tokens) == captions
    assert scenes.size == len(VOCABULARY) and int(tokens.max()) < scenes.size
    lengths = (tokens >= 0).sum(1).tolist()
    assert lengths == [len(c.split()) for c in captions]
    assert all(bool((row[n:] == -1).all()) for row, n in zip(tokens, lengths, strict=True))


def test_case_does_not_matter_and_nothing_is_nothing():
    scenes = tokenizer("scenes")
    assert torch.equal(scenes(["A Red RING"]), scenes(["a red ring"]))
    assert bool((scenes(["", " "]) == -1).all())


@pytest.mark.parametrize(
    "captions, message",
    [
        ("a red ring", "a list of captions is accepted"),
        (["a redd ring"], "no word 'redd'.*did you mean 'red'"),
        (["a red ring"] + [" ".join(["a"] * 13)], "13 words; up to 12"),
    ],
)
def test_bad_captions_are_told(captions, message):
    with pytest.raises(ValueError, match=message):
        tokenizer("scenes")(captions)


def test_unknown_tokenizer():
    with pytest.raises(ValueError, match="no tokenizer 'scene': did you mean 'scenes'"):
        tokenizer("scene")


def test_clip_agrees_with_open_clip():
    import open_clip

    texts = ["a small Red ring above a blue square", "", "naïve café, 42!"]
    theirs, ours = open_clip.tokenize(texts), tokenizer("clip")(texts)
    assert tokenizer("clip").size == open_clip.tokenizer.SimpleTokenizer().vocab_size
    for row, own in zip(theirs.tolist(), ours.tolist(), strict=True):
        end = row.index(49407)  # <end_of_text>
        assert row[1:end] == [token for token in own if token >= 0]
    assert tokenizer("clip").decode(ours)[0] == "a small red ring above a blue square"


def _bytes_as_printable() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


@pytest.fixture
def gpt2_files(tmp_path, monkeypatch):
    """A small vocabulary in the files that GPT-2's was published in."""
    spelled = _bytes_as_printable()
    ordered = [spelled[b] for b in [*range(33, 127), *range(161, 173), *range(174, 256)]]
    ordered += [spelled[b] for b in range(256) if spelled[b] not in ordered]
    space = spelled[32]
    merges = [("r", "e"), ("re", "d"), (space, "red"), ("i", "n"), ("in", "g")]
    vocabulary = ordered + ["".join(pair) for pair in merges]
    (tmp_path / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (tmp_path / "vocab.bpe").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    monkeypatch.setenv("MINIDIFF_GPT2", str(tmp_path))
    return vocabulary


def test_glide_reads_lower_case_by_the_published_files(gpt2_files):
    pairs = GlideTokenizer()
    space = _bytes_as_printable()[32]
    (row,) = pairs(["Red red ring é"]).tolist()
    spelled = [gpt2_files[token] for token in row if token >= 0]
    bytes_of_e = [_bytes_as_printable()[b] for b in "é".encode()]
    assert spelled == ["red", space + "red", space, "r", "ing", space, *bytes_of_e]
    assert len(row) == 128 and pairs.decode(torch.tensor([row])) == ["red red ring é"]


def test_glide_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.delenv("MINIDIFF_GPT2", raising=False)
    with pytest.raises(ValueError, match="MINIDIFF_GPT2 is not set"):
        GlideTokenizer()(["a ring"])
    monkeypatch.setenv("MINIDIFF_GPT2", str(tmp_path))
    with pytest.raises(ValueError, match="lacks them"):
        GlideTokenizer()(["a ring"])


def test_files_that_were_mended_are_read_anew(gpt2_files, tmp_path):
    """Whoever reads such files for us keeps them by their path."""
    whole = (tmp_path / "vocab.bpe").read_bytes()
    for content in (whole[:-8], b"", b"\xff\xfe" * 50, whole.replace(b"r e", b"e r")):
        (tmp_path / "vocab.bpe").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"^encoder\.json and vocab\.bpe in .* are not GPT-2's, or damaged \(.+\)$"
        ):
            GlideTokenizer()(["a red ring"])
    (tmp_path / "vocab.bpe").write_bytes(whole)
    (tmp_path / "encoder.json").write_text("[1]")
    with pytest.raises(ValueError, match="are not GPT-2's"):
        GlideTokenizer()(["a red ring"])
    (tmp_path / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(gpt2_files)}))
    assert GlideTokenizer().decode(GlideTokenizer()(["a red ring"])) == ["a red ring"]


def test_a_caption_may_spell_special_tokens(gpt2_files):
    """The letters are read as letters, as the published reader does: its pattern knows no special tokens."""
    pairs, text = GlideTokenizer(), "a <|endoftext|> b"
    spelled = [gpt2_files[token] for token in pairs([text])[0].tolist() if token >= 0]
    assert "".join(spelled).replace(_bytes_as_printable()[32], " ") == text
    clip = tokenizer("clip")
    for text in ("a <end_of_text> b", "<START_OF_TEXT>", "<start_of_text><end_of_text>"):
        tokens = [token for token in clip([text])[0].tolist() if token >= 0]
        assert tokens and max(tokens) < 49406
        apart = text.lower().replace("<", " < ").replace(">", " > ").replace("_", " _ ")
        assert tokens == [token for token in clip([apart])[0].tolist() if token >= 0]
