"""Which function is which equation: the docstrings' labels, listed once more, and held against the lessons.

A label in a docstring is right when this list has it there too, and the lesson that holds the equation names the
function, or the class around it. What that cannot see: a label that is wrong in both places, in a lesson that names the
function for something else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.gates import labels_in_code
from tools.lessons import ROOT, Lesson
from tools.render import make_index

EQUATIONS = {
    "eq-ancestral": ("sampler.ancestral",),
    "eq-autoguidance": ("guidance.autoguidance",),
    "eq-best-of": ("choosing.best_of", "systems.draw.draw"),
    "eq-bayes-level": ("exact.GaussianMixtureDenoiser.log_prob_label",),
    "eq-caption-split": ("pmi.information_left",),
    "eq-cfg": ("guidance.classifier_free",),
    "eq-classifier-guidance": ("guidance.classifier_guidance",),
    "eq-clip-critic": ("systems.clip.CLIP.critic",),
    "eq-clip-guidance": ("guidance.clip_guidance",),
    "eq-code-chain": ("systems.ar_prior.AutoregressivePrior",),
    "eq-cross-entropy": ("cross_entropy", "cross_entropy.cross_entropy", "cross_entropy.entropy_at"),
    "eq-ddim": ("course.checks.l02_samplers._right_step", "sampler.ddim"),
    "eq-decoder": ("likelihood.discretized_gaussian_log_likelihood", "likelihood.decoder_nll"),
    "eq-embedding-scale": ("models.embedding.Convention",),
    "eq-empirical": ("exact.EmpiricalDenoiser",),
    "eq-encode": ("inversion.ddim_inversion",),
    "eq-exact-parts": ("exact.EncodedMixture",),
    "eq-excess": ("cross_entropy.excess",),
    "eq-flow-likelihood": ("cross_entropy.ode_log_prob",),
    "eq-gaussian-conditional": ("exact.GaussianDenoiser.given",),
    "eq-gaussian-denoiser": ("exact.GaussianDenoiser",),
    "eq-gaussian-kl": ("likelihood.gaussian_kl",),
    "eq-guidance-interval": ("guidance.guidance_interval",),
    "eq-importance-bound": ("systems.lsgm.LSGM.log_weights",),
    "eq-impose": ("guidance.replace_known", "systems.parts.Known.impose"),
    "eq-info-nce": ("pmi.info_nce",),
    "eq-kept": ("inversion.variation_correlation",),
    "eq-learned-variance": ("process.reverse_log_variance",),
    "eq-marginal": ("process.diffuse", "schedule"),
    "eq-mean-shift": ("guidance.mean_shift_guidance",),
    "eq-mixed": ("systems.lsgm.LSGM.forward",),
    "eq-mixture-denoiser": ("exact.GaussianMixtureDenoiser.__call__",),
    "eq-noised-condition": ("systems.parts.LowRes.noised",),
    "eq-parametrisations": ("prediction.Prediction",),
    "eq-paste": ("process.paste", "sampler.replacing"),
    "eq-path-weight": ("smc.path_log_weight", "smc.corrected"),
    "eq-pca-loss": ("models.prior.PrincipalCodes",),
    "eq-pf-ode": ("sampler.heun",),
    "eq-pmi": ("pmi.pointwise_mutual_information",),
    "eq-posterior": ("process.beta_tilde", "process.posterior_mean"),
    "eq-posterior-weights": ("exact.GaussianMixtureDenoiser.given",),
    "eq-proposals": ("cross_entropy.Times",),
    "eq-rate": ("cross_entropy.rate",),
    "eq-replacement-weight": ("smc.filtered_replacement",),
    "eq-rescaled": ("guidance.rescaled",),
    "eq-round-trip": ("inversion.round_trip_factor",),
    "eq-routing": ("systems.lsgm.LSGM.loss",),
    "eq-slerp": ("inversion.slerp",),
    "eq-smc-weight": ("smc.corrected",),
    "eq-sr3-level": ("systems.cascade.told_alpha_bar", "training.levels.AlphaBetween"),
    "eq-systematic": ("smc.systematic_resample",),
    "eq-text-diff": ("inversion.text_diff",),
    "eq-three-terms": ("systems.lsgm.Bound", "systems.lsgm.LSGM.loss"),
    "eq-top-share": ("choosing.top_share", "systems.ar_prior.AutoregressivePrior.draw"),
    "eq-transition": ("process.transition", "sampler.replacing"),
    "eq-truncated": ("systems.draw.truncated",),
    "eq-variance-bounds": ("process.beta",),
    "eq-vlb": ("likelihood.prior_kl", "likelihood.step_kl", "likelihood.vlb_terms"),
    "eq-weightings": ("cross_entropy.weight",),
}  # label -> where the package names it
ELSEWHERE = {("sampler.replacing", "eq-transition")}  # named on the way, by a function that a later lesson is about


def named(root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """Place, label, and the module, class or function that names it, by its path below the package."""
    for place, label in labels_in_code(root):
        path, _, line = place.rpartition(":")
        around = _around(ast.parse(Path(path).read_text(encoding="utf-8")), int(line))
        yield place, label, ".".join([_module(place, root), *around])


def _module(place: str, root: Path) -> str:
    """The module that a place is in, by its path below the package."""
    return ".".join(Path(place.rpartition(":")[0]).relative_to(root / "minidiff").with_suffix("").parts)


def _around(node: ast.AST, line: int) -> list[str]:
    """The names of the classes and functions around a line, the outermost first."""
    for child in ast.iter_child_nodes(node):
        inside = isinstance(child, ast.ClassDef | ast.FunctionDef) and child.lineno <= line <= child.end_lineno
        if inside:
            return [child.name, *_around(child, line)]
    return []


def mislabelled(lessons: list[Lesson], root: Path = ROOT) -> Iterator[str]:
    """Labels that the list above does not have there, or whose lesson says nothing of the function."""
    places = make_index(lessons, root).places
    texts = {str(lesson.path): lesson.path.read_text(encoding="utf-8") for lesson in lessons}
    seen: dict[str, set[str]] = {}
    for place, label, owner in named(root):
        seen.setdefault(label, set()).add(owner)
        if owner not in EQUATIONS.get(label, ()):
            yield f"{place}: {owner} names {label!r}; tools/equations.py knows it for {EQUATIONS.get(label, ())}"
        lesson = str(places.get(label, "")).rpartition(":")[0]
        name = owner.removeprefix(_module(place, root) + ".").split(".")[0]
        of_this_lesson = owner.startswith(f"course.checks.l{Path(lesson).stem}")
        about = re.search(rf"\b{re.escape(name)}\b", texts.get(lesson, ""))
        if not (about or of_this_lesson or (owner, label) in ELSEWHERE):
            yield f"{place}: {owner} names {label!r}, but {Path(lesson).name} does not mention {name}"
    for label, owners in EQUATIONS.items():
        for owner in sorted(set(owners) - seen.get(label, set())):
            yield f"tools/equations.py:1: {owner} does not name {label!r}"
