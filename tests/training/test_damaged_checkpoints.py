"""A checkpoint is damaged in every way that could be thought of: resuming and loading refuse it, in one line that names
the good one before, and neither file is touched."""

import io
import json
import os
import random
import re
import struct
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save, save_file

from minidiff.cli import main
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import load
from minidiff.training import checkpoint
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.loop import train
from minidiff.training.publish import publish

TINY = str(Path(__file__).parent / "tiny.yaml")
CHANGES = ["training.steps=3", "network.channel_mult=[1]", "network.attention=[]"]
RECIPE = load_recipe(TINY, CHANGES)
NEXT = r"previous\.safetensors is good and stands at step 2: copy it to last\.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    train(RECIPE, Recipe.build, folder, cpu=True, quiet=True)
    return folder


@pytest.fixture(scope="module")
def published(good):
    publish(RECIPE, RECIPE.build(), good, good / "published")
    return good / "published"


@pytest.fixture
def run(good, tmp_path):
    """A copy of a finished run, to be damaged."""
    for name in ("last", "previous"):
        (tmp_path / f"{name}.safetensors").write_bytes((good / f"{name}.safetensors").read_bytes())
    return tmp_path


def body(content: bytes) -> int:
    """Where the tensors begin: after eight bytes of length and a header of JSON."""
    return 8 + struct.unpack("<Q", content[:8])[0]


def flipped(content: bytes, at: int, bit: int = 0) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def flipped_somewhere(seed: int, where: str):
    def damage(content: bytes) -> bytes:
        dice = random.Random(seed)
        low, high = (0, body(content)) if where == "header" else (body(content), len(content))
        return flipped(content, dice.randrange(low, high), dice.randrange(8))

    return damage


def zeroed(content: bytes, start: float, end: float) -> bytes:
    first, last = (round(share * len(content)) for share in (start, end))
    return content[:first] + bytes(last - first) + content[last:]


def exchanged(content: bytes) -> bytes:
    """Two blocks of the disk, one for the other."""
    a, b = body(content) + 512, body(content) + 4096
    return content[:a] + content[b : b + 512] + content[a + 512 : b] + content[a : a + 512] + content[b + 512 :]


def header(content: bytes, old: str, new: str) -> bytes:
    """The file with other text in its header, its length set right."""
    text = content[8 : body(content)].decode()
    assert old in text
    changed = text.replace(old, new).encode()
    return struct.pack("<Q", len(changed)) + changed + content[body(content) :]


def pickled(content: bytes) -> bytes:
    file = io.BytesIO()
    torch.save({"step": 3}, file)
    return file.getvalue()


def retyped(content: bytes) -> bytes:
    """All numbers read as integers of the same size."""
    return header(content, '"F', '"I')


BYTES = {
    "empty": lambda c: b"",
    "one byte": lambda c: c[:1],
    "the length of the header alone": lambda c: c[:8],
    "the header alone": lambda c: c[: body(c)],
    "half a header": lambda c: c[: body(c) // 2],
    "half of it": lambda c: c[: len(c) // 2],
    "a hundred bytes short": lambda c: c[:-100],
    "a byte short": lambda c: c[:-1],
    "a byte longer": lambda c: c + b"\0",
    "twice": lambda c: c + c,
    "without its first byte": lambda c: c[1:],
    "all zero": lambda c: bytes(len(c)),
    "all ones": lambda c: b"\xff" * len(c),
    "noise": lambda c: random.Random(0).randbytes(len(c)),
    "first half zeroed": lambda c: zeroed(c, 0, 0.5),
    "second half zeroed": lambda c: zeroed(c, 0.5, 1),
    "a page in the middle zeroed": lambda c: zeroed(c, 0.5, 0.52),
    "last page zeroed": lambda c: zeroed(c, 0.98, 1),
    "two blocks exchanged": exchanged,
    "numbers backwards": lambda c: c[: body(c)] + c[body(c) :][::-1],
    "first bit of the numbers flipped": lambda c: flipped(c, body(c)),
    "last bit flipped": lambda c: flipped(c, len(c) - 1, 7),
    "a header of no length": lambda c: bytes(8) + c[8:],
    "a header longer than the file": lambda c: struct.pack("<Q", 1 << 40) + c[8:],
    "a header that is no JSON": lambda c: c[:8] + b"[" + c[9:],
    "another format": lambda c: header(c, checkpoint.FORMAT, "minidiff-checkpoint-9"),
    "no format": lambda c: header(c, '"format"', '"formal"'),
    "another step": lambda c: header(c, 'step\\": 3', 'step\\": 2'),
    "another checksum": lambda c: header(c, '"sha256":"', '"sha256":"0'),
    "an empty checksum": lambda c: re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b" " * 64 + b'"', c),
    "a tensor of another name": lambda c: header(c, "network.out.", "network.our."),
    "numbers of another type": retyped,
    "text": lambda c: b"<!doctype html><title>Sign in</title>" * 100,
    "a pickle": pickled,
    **{f"bit {i} of the numbers flipped": flipped_somewhere(i, "numbers") for i in range(8)},
    **{f"bit {i} of the header flipped": flipped_somewhere(i, "header") for i in range(8)},
}


def refused(run, message: str = ""):
    """Both refuse the run, in one line each, and leave all files as they are."""
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.suffix == ".safetensors"}
    for attempt in (lambda: train(RECIPE, Recipe.build, run, cpu=True, quiet=True), lambda: load(str(run))):
        with pytest.raises(ValueError, match=rf"^[^\n]*last\.safetensors[^\n]*{message}[^\n]*{NEXT}[^\n]*$"):
            attempt()
    after = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.suffix == ".safetensors"}
    assert after == before


@pytest.mark.parametrize("damage", BYTES)
def test_bytes_that_changed(run, damage):
    last = run / "last.safetensors"
    content = BYTES[damage](last.read_bytes())
    assert content != last.read_bytes(), "the damage is there"
    last.write_bytes(content)
    refused(run)


def first(tensors: dict, like: str) -> str:
    return next(k for k in sorted(tensors) if k.startswith(like) and tensors[k].ndim)


def put(like: str, value: float):
    """One number of a tensor replaced."""

    def damage(tensors, meta):
        tensors[first(tensors, like)].view(-1)[-1] = value

    return damage


def every(like: str, change):
    """All tensors whose names begin like this, changed; None takes them out."""

    def damage(tensors, meta):
        for name in [k for k in tensors if re.match(like, k)]:
            changed = change(tensors.pop(name))
            if changed is not None:
                tensors[name] = changed.contiguous()

    return damage


def one(like: str, change):
    """The same of a single tensor."""

    def damage(tensors, meta):
        every(re.escape(first(tensors, like)) + "$", change)(tensors, meta)

    return damage


def say(**facts):
    return lambda tensors, meta: meta.update(facts)


def keep_quiet(name: str):
    return lambda tensors, meta: meta.pop(name)


def more(name: str):
    return lambda tensors, meta: tensors.update({name: torch.ones(3)})


def swapped(tensors, meta):
    """Two weights of different shapes, under each other's names."""
    a = first(tensors, "model.")
    b = next(k for k in tensors if k.startswith("model.") and tensors[k].shape != tensors[a].shape)
    tensors[a], tensors[b] = tensors[b], tensors[a]


NAN, INF, SQUARES, STEPS = float("nan"), float("inf"), r"optimizer\..*exp_avg_sq$", r"optimizer\..*\.step$"
gone = lambda tensor: None
POISON = {
    "NaN weights": (put("model.", NAN), "not finite: model."),
    "infinite weights": (put("model.", -INF), "not finite: model."),
    "NaN averages": (put("ema ", NAN), "not finite: ema"),
    "infinite averages": (put("ema ", INF), "not finite: ema"),
    "NaN moments": (put("optimizer.", NAN), "not finite: optimizer."),
    "all NaN": (every("", lambda t: t * NAN), "not finite: ema"),
    "negative squares": (every(SQUARES, lambda t: t - 1), "squares is negative: optimizer."),
    "moments of no step": (every(STEPS, torch.zeros_like), "no step up to 3: optimizer."),
    "moments of a late step": (every(STEPS, lambda t: t + 9), "no step up to 3: optimizer."),
    "no optimiser": (every("optimizer", gone), "missing: optimizer."),
    "no squares": (every(SQUARES, gone), "missing: optimizer."),
    "a moment missing": (one("optimizer.", gone), "missing: optimizer."),
    "no weights": (every("model", gone), "missing: model."),
    "a weight missing": (one("model.", gone), "missing: model."),
    "no averages": (every("ema ", gone), "missing: ema"),
    "an average missing": (one("ema ", gone), "missing: ema"),
    "nothing": (every("", gone), "missing: ema"),
    "a weight more": (more("model.network.more"), "unexpected: model.network.more"),
    "a stranger": (more("notes"), "unexpected: notes"),
    "an average more": (more("ema 0.5.network.more"), "unexpected: ema 0.5"),
    "learnt without being told": (more("levels.losses"), r"learnt \[\] beside"),
    "half weights": (every("model", torch.Tensor.half), "of another type: model."),
    "double weights": (every("model", torch.Tensor.double), "of another type: model."),
    "brain moments": (every("optimizer", torch.Tensor.bfloat16), "of another type: optimizer."),
    "half averages": (one("ema ", torch.Tensor.half), "of another type: ema"),
    "whole numbers": (one("model.", torch.Tensor.long), "no floating-point numbers: model."),
    "truth values": (one("ema ", torch.Tensor.bool), "no floating-point numbers: ema"),
    "complex weights": (one("model.", lambda t: t.to(torch.complex64)), "no floating-point numbers: model."),
    "a broadcast": (one("model.network.out.", lambda t: t[:1]), "of another shape: model."),
    "a number for a weight": (one("model.", lambda t: t.mean()), "of another shape: model."),
    "a broadcast moment": (one("optimizer.", lambda t: t[:1]), "of another shape: optimizer."),
    "an empty tensor": (one("model.", lambda t: t[:0]), "of another shape: model."),
    "a flat weight": (one("model.network.input_blocks.0", lambda t: t[None]), "of another shape: model."),
    "a transposed weight": (one("model.network.time_embed", lambda t: t[..., None]), "of another shape: model."),
    "two weights swapped": (swapped, "of another shape: model."),
    "a late step": (say(step=9), "step 9 of 3"),
    "a step before the first": (say(step=-1), "step -1"),
    "no step yet": (say(step=0), "step 0"),
    "half a step": (say(step=2.5), "step 2.5"),
    "a step in words": (say(step="2"), "step '2'"),
    "a true step": (say(step=True), "step True"),
    "no step at all": (keep_quiet("step"), "step None"),
    "NaN seconds": (say(seconds=NAN), "after nan seconds"),
    "endless seconds": (say(seconds=INF), "after inf seconds"),
    "seconds before the start": (say(seconds=-1.0), "after -1.0 seconds"),
    "no seconds": (keep_quiet("seconds"), "after None seconds"),
    "images in words": (say(images="many"), "'many' images"),
    "no images": (say(images=0), "on 0 images"),
    "what is unmoved in a number": (say(unmoved=3), "'unmoved' is no list of names"),
    "what was learnt is missing": (say(learnt=["losses"]), r"learnt \['losses'\] beside"),
    "no recipe": (keep_quiet("recipe"), "recipe must be a mapping"),
    "a recipe in words": (say(recipe="digits"), "recipe must be a mapping"),
    "an empty recipe": (say(recipe={}), "recipe lacks"),
    "a recipe with a key more": (
        lambda tensors, meta: meta["recipe"]["training"].update(step=3),
        r"unknown key recipe\.training\.step",
    ),
}


@pytest.mark.parametrize("poison", POISON)
def test_state_that_is_wrong_even_with_a_checksum_of_its_own(run, poison):
    last, (change, message) = run / "last.safetensors", POISON[poison]
    tensors, meta = load_checkpoint(last)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # they may map the file
    change(tensors, meta)
    last.write_bytes(checkpoint._content(tensors, meta))
    refused(run, message)
    save_file(tensors, last, {"format": checkpoint.FORMAT, "meta": json.dumps(meta)})
    refused(run, message)


META = {
    "no JSON": "{step: 3}",
    "half of it": '{"step": 3, "seconds"',
    "empty": "",
    "a list": "[3]",
    "null": "null",
    "a number": "3",
    "too deep": "[" * 100_000,
    "a number without end": '{"step": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("text", META)
def test_meta_that_is_none(run, text):
    last = run / "last.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_checkpoint(last)[0].items()}
    facts = {"format": checkpoint.FORMAT, "meta": META[text], "sha256": checkpoint._checksum(tensors, META[text])}
    last.write_bytes(save(tensors, facts))
    refused(run)


@pytest.mark.parametrize("instead", ["a folder", "nothing", "a link to nothing", "a pipe"])
def test_what_is_no_file(run, instead):
    last = run / "last.safetensors"
    last.unlink()
    if instead == "a folder":
        last.mkdir()
    elif instead == "a link to nothing":
        last.symlink_to(run / "nowhere")
    elif instead == "a pipe":
        os.mkfifo(last)
    refused(run)


def test_what_was_published_is_no_checkpoint_of_a_run(run):
    tensors, _ = load_checkpoint(run / "last.safetensors")
    checkpoint.export_weights(checkpoint.averaged(tensors, RECIPE.training.ema[0]), run / "model.safetensors", {})
    (run / "model.safetensors").replace(run / "last.safetensors")
    refused(run, "no checkpoint of a run")


def test_what_the_message_says_goes_on_to_the_same_end(run):
    last, previous = run / "last.safetensors", run / "previous.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_checkpoint(last)[0].items()}
    last.write_bytes(BYTES["second half zeroed"](last.read_bytes()))
    refused(run)
    last.write_bytes(previous.read_bytes())
    train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    tensors, meta = load_checkpoint(last)
    assert meta["step"] == 3 and all(torch.equal(tensors[name], tensor) for name, tensor in whole.items())


def test_a_checkpoint_before_that_is_damaged_too_is_not_named(run):
    for name in ("last", "previous"):
        path = run / f"{name}.safetensors"
        path.write_bytes(BYTES["second half zeroed"](path.read_bytes()))
    for attempt in (lambda: train(RECIPE, Recipe.build, run, cpu=True, quiet=True), lambda: load(str(run))):
        with pytest.raises(ValueError, match=r"^[^\n]*last\.safetensors is damaged") as refusal:
            attempt()
        assert "previous" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["empty", "second half zeroed", "bit 3 of the numbers flipped"])
def test_the_command_line_says_so_in_one_line(run, damage):
    last = run / "last.safetensors"
    last.write_bytes(BYTES[damage](last.read_bytes()))
    commands = (
        ["train", TINY, *CHANGES, "--out", str(run), "--quiet", "--cpu"],
        ["sample", str(run), "--count", "1", "--cpu", "--out", str(run / "x.png")],
    )
    for command in commands:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2 and re.search(NEXT, result.output), result.output
        assert len(result.output.strip().splitlines()) == 1


def test_a_checkpoint_without_a_checksum_still_goes_on(run):
    previous, last = run / "previous.safetensors", run / "last.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_checkpoint(last)[0].items()}
    tensors, meta = load_checkpoint(previous)
    del meta["unmoved"], meta["learnt"], meta["images"]
    save_file(tensors, last, {"format": checkpoint.FORMAT, "meta": json.dumps(meta)})
    train(RECIPE, Recipe.build, run, cpu=True, quiet=True)
    assert all(torch.equal(v, whole[k]) for k, v in load_checkpoint(last)[0].items())
    with safe_open(last, "pt") as file:
        assert len(file.metadata()["sha256"]) == 64


PUBLISHED = {name: BYTES[name] for name in BYTES if name != "another step"}


@pytest.mark.parametrize("damage", PUBLISHED)
def test_published_weights_that_changed(published, tmp_path, damage):
    content = (published / "model.safetensors").read_bytes()
    (tmp_path / "card.json").write_bytes((published / "card.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(PUBLISHED[damage](content))
    with pytest.raises(ValueError, match=r"^[^\n]*model\.safetensors[^\n]*$"):
        load(str(tmp_path))
