"""``minidiff sample`` stage by stage: what recipes publish, what options change, GLIDE's own notebook, and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from helpers import awake

from minidiff.cli import main
from minidiff.cli.kept import Kept
from minidiff.guidance import adm
from minidiff.pixels import to_uint8
from minidiff.random import sample_generators
from minidiff.recipes import Recipe, load_recipe
from minidiff.sampler import ancestral
from minidiff.store import find, load
from minidiff.systems.draw import draw
from minidiff.training.loop import train

HERE = Path(__file__).parents[1]
TINY, TEXT = str(HERE / "training/tiny.yaml"), str(HERE / "training/tiny-glide.yaml")
CAPTION = "a small red ring above a blue square"
LEARNED = "predicts: eps, variance: learned"


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def drawn(path, *arguments) -> tuple[np.ndarray, dict]:
    result = run("sample", *arguments, "--cpu", "--out", path)
    assert result.exit_code == 0, result.output
    return np.load(path)["arr_0"], json.loads(path.with_suffix(".json").read_text()) | {"said": result.output}


def block(name: str) -> str:
    """The published block of a preset, as an override of another recipe."""
    plain = load_recipe(name).to_plain()["sampling"]
    return f"sampling={yaml.safe_dump(plain, default_flow_style=True, width=1000).strip()}"


def random_run(folder, recipe, std=0.2) -> Path:
    """A run whose weights are random, and stay so."""
    train(recipe, lambda r: awake(r.build(), std, 0, torch.float32).train(), folder, cpu=True, quiet=True)
    return folder


@pytest.fixture(scope="module")
def glide(tmp_path_factory):
    """GLIDE's two stages in its schedules and variances, small, with random weights; sampled as the presets are."""
    folder, still = tmp_path_factory.mktemp("glide"), ["training.steps=1", "training.lr=1e-12"]
    base = [f"system={{name: glide, {LEARNED}, drop: 0.2}}", "network.out_channels=6"]
    base += ["schedule={name: clipped_cosine}"]
    up = [
        f"system={{name: glide_upsampler, {LEARNED}, factor: 2}}", "schedule={name: linear}", "network.size=32",
        "data.size=32", "network.attention=16", "network.in_channels=6", "network.out_channels=6",
    ]  # fmt: skip
    for name, changes in (("base", base), ("upsampler", up)):
        for kind, more in (("published", [block(f"glide-{name}")]), ("plain", [])):
            random_run(folder / f"{name}-{kind}", load_recipe(TEXT, [*changes, *still, *more]))
    return folder


# --- GLIDE's notebook, written again from the formulas --------------------------------------------------------------


def cosine_betas() -> torch.Tensor:
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def respaced_betas(betas: torch.Tensor, times: list[int]) -> torch.Tensor:
    """Betas of the chain through these times: one minus the ratios of alpha-bar (Nichol and Dhariwal 2021)."""
    bar = (1 - betas).cumprod(0)[times]
    return 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])


def notebook(base, up, caption: str, n: int) -> torch.Tensor:
    """100 ancestral steps with the learned variance at s = 3, eight bits, 27 steps of DDIM at temperature .997."""
    generators = sample_generators(0, range(n))
    noise = lambda shape: torch.stack([torch.randn(shape[1:], generator=g) for g in generators])
    tokens = base.part("caption").read([caption] * n, ())
    empty = torch.full_like(tokens, -1)
    words = lambda system, t: system.part("caption").encode(system.network, t)
    times = [round(i * 999 / 99) for i in range(100)]
    betas = respaced_betas(cosine_betas(), times)
    bar = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    small = betas * (1 - before) / (1 - bar)
    log_small = torch.cat([small[1:2], small[1:]]).log()
    x = noise((n, 3, 16, 16))
    with torch.no_grad():
        for i in reversed(range(100)):
            time = torch.full((n,), times[i])
            conditional, plain = base.network(x, time, words(base, tokens)), base.network(x, time, words(base, empty))
            eps = plain[:, :3] + 3.0 * (conditional[:, :3] - plain[:, :3])
            x0 = ((x - (1 - bar[i]).sqrt() * eps) / bar[i].sqrt()).clamp(-1, 1)
            mean = betas[i] * before[i].sqrt() / (1 - bar[i]) * x0
            mean = mean + (1 - before[i]) * (1 - betas[i]).sqrt() / (1 - bar[i]) * x
            share = (conditional[:, 3:] + 1) / 2
            log_variance = share * betas[i].log() + (1 - share) * log_small[i]
            x = (mean + (0.5 * log_variance).exp() * noise(x.shape) if i else mean).float()
        x = ((x + 1) * 127.5).round() / 127.5 - 1
        large = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
        sections = [(0, 10), (200, 10), (400, 3), (600, 2), (800, 2)]
        times = [first + round(i * 199 / (count - 1)) for first, count in sections for i in range(count)]
        times[-1] = 997
        bar = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[times]
        y = 0.997 * noise((n, 3, 32, 32))
        for i in reversed(range(27)):
            told = words(up, tokens)
            out = up.network(torch.cat([y, large], 1), torch.full((n,), times[i]), told)[:, :3]
            y0 = ((y - (1 - bar[i]).sqrt() * out) / bar[i].sqrt()).clamp(-1, 1)
            eps = (y - bar[i].sqrt() * y0) / (1 - bar[i]).sqrt()
            y = (bar[i - 1].sqrt() * y0 + (1 - bar[i - 1]).sqrt() * eps if i else y0).float()
    return to_uint8(y).permute(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["published", "plain"])
def test_glides_notebook_from_the_command_line(glide, kind, tmp_path):
    """By what the presets' recipes say, and by options alone; the reference is none of our samplers."""
    base, up = glide / f"base-{kind}", glide / f"upsampler-{kind}"
    options = [] if kind == "published" else [
        "--steps", "100", "--steps", "fast27", "--sampler", "ancestral", "--sampler", "ddim",
        "--temperature", 1, "--temperature", 0.997, "--scale", 3,
    ]  # fmt: skip
    images, used = drawn(tmp_path / "x.npz", base, CAPTION, "--count", 2, "--upsample", up, *options)
    expected = notebook(load(str(base)), load(str(up)), CAPTION, 2).numpy()
    difference = np.abs(images.astype(int) - expected)
    assert np.median(difference) == 0 and (difference > 1).mean() < 0.01, "but where a rounding falls differently"
    assert "100 steps, ancestral, s = 3" in used["said"] and "fast27 steps, ddim" in used["said"]
    assert "temperature 0.997" in used["said"]
    assert [stage["scale"] for stage in used["stages"]] == [3.0, 1.0 if kind == "published" else None]


def test_options_change_what_was_published(glide, tmp_path):
    base, up = glide / "base-published", glide / "upsampler-published"
    more = ["--steps", 2, "--steps", 3, "--scale", 1, "--sampler", "heun"]
    _, used = drawn(tmp_path / "x.npz", base, CAPTION, "--count", 1, "--upsample", up, *more)
    first, second = used["stages"]
    assert (first["steps"], first["sampler"], first["scale"], first["temperature"]) == ("2", "heun", 1.0, 1.0)
    assert (second["steps"], second["sampler"], second["temperature"]) == ("3", "ddim", 0.997)
    _, used = drawn(tmp_path / "y.npz", base, CAPTION, "--count", 1, "--steps", "ddim5")
    assert used["stages"][0]["sampler"] == "ddim", "that spelling names the sampler as well"


def test_a_classifier_guides_by_adms_rule_at_the_published_scale(tmp_path):
    where = random_run(tmp_path / "run", load_recipe(TINY, ["training.steps=1", block("adm-imagenet128")]))
    arguments = [where, "--label", 3, "--count", 2, "--classifier", "digits-classifier", "--steps", "5"]
    _, used = drawn(tmp_path / "x.npz", *arguments)
    assert used["stages"][0]["scale"] == 1.0, "nothing was published for 5 steps"
    images, used = drawn(tmp_path / "y.npz", *arguments[:-1], "ddim25")
    log_prob = load("digits-classifier").classifier(3)
    how = {"guide": adm(log_prob, 1.25, ode=True), "threshold": None, "levels": "ddim25", "label": 3}
    expected = draw(load(str(where)), 2, generator=sample_generators(0, range(2)), **how)
    assert used["stages"][0]["scale"] == 1.25
    assert np.array_equal(images, to_uint8(expected).permute(0, 2, 3, 1).numpy())
    images, _ = drawn(tmp_path / "z.npz", *arguments)
    how |= {"guide": adm(log_prob, 1.0), "levels": 5, "sampler": ancestral("learned")}
    expected = draw(load(str(where)), 2, generator=sample_generators(0, range(2)), **how)
    assert np.array_equal(images, to_uint8(expected).permute(0, 2, 3, 1).numpy())


def test_the_same_in_python(glide):
    """What a recipe says is one argument of ``draw``."""
    base = find(str(glide / "base-published"))
    options = base.recipe.sampling.options(base.system)
    assert options["levels"] == "100" and options["temperature"] == 1
    images = draw(base.system, 1, **(options | {"levels": 2}), caption=CAPTION)
    assert images.shape == (1, 3, 16, 16) and bool(images.isfinite().all())


def test_a_run_goes_on_whatever_its_recipe_says_of_sampling(tmp_path):
    for steps, more in ((1, []), (2, [block("adm-imagenet64")]), (3, ["sampling.steps='7'"])):
        recipe = load_recipe(TINY, [f"training.steps={steps}", "training.final_lr=1", *more])
        train(recipe, Recipe.build, tmp_path / "run", cpu=True, quiet=True)
    assert find(str(tmp_path / "run")).recipe.sampling.steps == "7"


def test_a_block_is_checked_as_the_others():
    for change, message in (
        ("sampling.stepz=3", "unknown key recipe.sampling.stepz: did you mean 'steps'"),
        ("sampling.steps=250", "must be of type str"),
        ("sampling.classifier_scales=3", "recipe.sampling.classifier_scales must be a mapping"),
        ("sampling.classifier_scales={'250': high}", "must be of type float"),
        ("sampling.temperature=-1", "temperature must be a finite number >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe("digits", [change])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2", "--steps", "3"], "--steps is named 2 times for 1 system: once for each is accepted"),
        (["--scale", "1", "--scale", "3"], "--scale is named 2 times"),
        (["--temperature", "inf"], "a finite number is accepted"),
        (["--sampler", "euler"], "'euler' is not one of"),
        (["--gamma", "0.3"], "gamma is of the sampler ancestral, and the sampler is ddim"),
        (["--sampler", "ancestral", "--gamma", "1.5"], "gamma"),
    ],
)
def test_bad_stages(arguments, message, tmp_path):
    result = run("sample", "digits", *arguments, "--cpu", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and message in result.output, result.output
    assert len(result.output.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_preset_is_named_with_what_to_do_next(tmp_path):
    result = run("sample", "adm-imagenet64", "--cpu", "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "`minidiff download adm-imagenet64`" in result.output
    result = run("sample", "--help-system", "glide-base")
    assert "sampled as published: 100 steps, ancestral, s = 3" in result.output


# --- pictures that are kept ------------------------------------------------------------------------------------------

MANY = ["digits", "--count", 12, "--steps", 40, "--batch", 3, "--cpu"]


def test_a_run_that_is_killed_keeps_what_it_drew_and_goes_on(tmp_path):
    """Killed without warning between batches; the rest is drawn, and all is as if nothing had happened."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minidiff", "sample", *map(str, MANY), "--out", str(tmp_path / "x.npz")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    parts, end = tmp_path / "x.npz.parts", time.monotonic() + 120
    while len(list(parts.glob("*-0*.npz"))) < 1 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.read_bytes() for path in parts.glob("*-0*.npz")}
    if (tmp_path / "x.npz").exists():
        pytest.fail("it was done before it could be killed")
    assert kept
    for path in parts.glob("*-0*.npz"):
        with np.load(path) as part:
            changed = {"index": part["index"], "pixels": np.zeros_like(part["pixels"])}
        np.savez(path, **changed)
    went_on, _ = drawn(tmp_path / "x.npz", *MANY[:-1])
    assert not parts.exists()
    whole, _ = drawn(tmp_path / "y.npz", *MANY[:-1])
    black = (went_on == 0).all((1, 2, 3))
    assert black.sum() == 3 * len(kept), "what was kept was taken, here with its pixels blackened to tell"
    assert np.array_equal(went_on[~black], whole[~black])


def test_ctrl_c_says_where_the_pictures_are(tmp_path, monkeypatch):
    from minidiff.metrics.drawing import Drawing

    before = Drawing.draw

    def stopped(self, *arguments, **options):
        yield next(before(self, *arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(Drawing, "draw", stopped)
    result = run("sample", *MANY, "--out", tmp_path / "x.png")
    assert result.exit_code == 130 and "3 pictures are kept in" in result.output
    assert "the same command goes on from there" in result.output
    monkeypatch.setattr(Drawing, "draw", lambda self, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    result = run("sample", *MANY, "--seed", 1, "--out", tmp_path / "x.png")
    assert "a smaller --batch" in result.output and not (tmp_path / "x.png.parts").exists()


def test_what_is_kept_is_of_the_same_settings(tmp_path):
    index, pixels = torch.arange(2), torch.full((2, 1, 1, 1), 7, dtype=torch.uint8)
    one, other = (Kept(tmp_path / "x.npz", {"seed": seed}) for seed in (0, 1))
    one.begin()
    one.add(index, pixels)
    assert [(i.tolist(), p.tolist()) for i, p in one] == [(index.tolist(), pixels.tolist())]
    (one.folder / f"{next(one.folder.glob('*.npz')).stem[:16]}-000000009.npz").write_bytes(b"broken")
    assert len(list(one)) == 1, "a file that cannot be read is none"
    other.begin(first=False)
    assert not list(other) and len(list(one)) == 1
    other.begin()
    assert not list(one), "the first process clears what other settings left"
    other.leave()
    assert not other.folder.exists()


def test_outputs_are_proved_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("minidiff.metrics.drawing.Drawing.draw", lambda *a, **k: pytest.fail("it began to draw"))
    (tmp_path / "x.json").write_text('{"mine": 1}')
    result = run("sample", *MANY, "--out", tmp_path / "x.png")
    assert result.exit_code == 2 and "would be replaced; choose another --out" in result.output
    (tmp_path / "y.png.parts").write_text("a file where the folder belongs")
    result = run("sample", *MANY, "--out", tmp_path / "y.png")
    assert result.exit_code == 2 and "cannot be written to" in result.output
    assert (tmp_path / "x.json").read_text() == '{"mine": 1}'


def test_more_processes_than_pictures(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["-m", "minidiff", "sample", "digits", "--count", "1", "--steps", "2", "--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, *arguments, "--out", str(tmp_path / "x.npz")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (1, 8, 8, 1) and not (tmp_path / "x.npz.parts").exists()


def test_the_bar_counts_every_step_of_every_stage(glide, tmp_path, monkeypatch):
    seen = {}

    class Bar:
        def __init__(self, total, disable, **options):
            seen.update(total=total, disable=disable, steps=0)

        def update(self):
            seen["steps"] += 1

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

    monkeypatch.setattr("tqdm.tqdm", Bar)
    arguments = [glide / "base-plain", CAPTION, "--count", 3, "--batch", 2, "--upsample", glide / "upsampler-plain"]
    more = ["--steps", 3, "--steps", 4]
    drawn(tmp_path / "x.npz", *arguments, *more)
    assert seen == {"total": 14, "disable": None, "steps": 14}, "None is tqdm's word for: on a terminal only"
    drawn(tmp_path / "x.npz", *arguments, *more, "--quiet")
    assert seen["disable"] is True
