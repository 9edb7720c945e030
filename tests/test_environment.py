"""pyproject.toml, requirements.lock, environment.yml and the book's configuration agree on what is installed."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import env
from tools.lessons import ROOT, config, repository

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
NEEDS = [
    *PROJECT["build-system"]["requires"],
    *PROJECT["project"]["dependencies"],
    *(line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra),
]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def pins(name: str) -> list[str]:
    """The versions that the lock has of a package; several where they depend on the Python."""
    found = [Requirement(line) for line in LOCK]
    wanted = canonicalize_name(name)
    return [str(r.specifier).removeprefix("==") for r in found if canonicalize_name(r.name) == wanted]


def test_the_lock_is_plain():
    strange = [line for line in LOCK if not re.fullmatch(r"[\w.-]+==[\w.!+-]+( ; .+)?", line)]
    assert strange == [], "only name==version lines, no address, no hash"


@pytest.mark.parametrize("line", NEEDS)
def test_the_lock_has_each_dependency_within_its_bounds(line):
    need = Requirement(line)
    assert pins(need.name), f"{need.name} is not locked: make lock"
    assert all(need.specifier.contains(version) for version in pins(need.name)), f"{pins(need.name)} against {need}"


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_what_colab_brings_has_no_upper_bound(name):
    (need,) = (r for r in map(Requirement, PROJECT["project"]["dependencies"]) if r.name == name)
    assert [s.operator for s in need.specifier] == [">="]


def test_conda_installs_the_lock():
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert pip == ["-r requirements.lock", "-e ."]


def test_one_range_of_pythons():
    oldest, newest = (f"{major}.{minor}" for major, minor in env.SUPPORTED)
    assert PROJECT["project"]["requires-python"] == f">={oldest}"
    (python,) = (entry for entry in CONDA["dependencies"] if str(entry).startswith("python"))
    accepted = SpecifierSet(python.removeprefix("python"))
    after = f"3.{env.SUPPORTED[1][1] + 1}"
    assert all(accepted.contains(v) for v in (oldest, newest)) and not any(accepted.contains(v) for v in ("3.9", after))


@pytest.mark.parametrize(
    "version, fits", [((3, 9, 18), False), ((3, 10, 0), True), ((3, 13, 5), True), ((3, 14, 0), False)]
)
def test_another_python_is_told_so(version, fits):
    message = env.unsupported(version)
    assert (message == "") == fits
    assert fits or (f"this is 3.{version[1]}" in message and "PYTHON=" in message)


@pytest.mark.parametrize("missing", ["requirements.lock", "pyproject.toml"])
def test_a_change_of_the_lock_is_noticed(tmp_path, monkeypatch, missing):
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("one==1\n")
    monkeypatch.setattr(env, "ROOT", str(tmp_path))
    before = env.wanted()
    (tmp_path / missing).write_text("one==2\n")
    assert env.wanted() != before


@pytest.mark.parametrize("extension", config()["sphinx"]["extra_extensions"])
def test_the_extensions_of_the_book_are_installed(extension):
    importlib.import_module(extension)


def test_one_place_names_the_host_of_the_code():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    owner_and_name = "/".join(repository()[0].split("/")[-2:])
    address = re.compile(rf"{re.escape(owner_and_name)}|(?:github|gitlab)\.com/[\w.-]+/minidiff")
    named = []
    for path in map(ROOT.joinpath, filter(None, listed.stdout.decode().split("\0"))):
        inside = path.relative_to(ROOT).parts[0]
        if path.suffix in {".safetensors", ".png"} or inside in {"notebooks", "tests"} or not path.is_file():
            continue  # notebooks are generated from it, and their own gate says whether they are
        if address.search(path.read_text(encoding="utf-8", errors="replace")):
            named.append(path.name)
    assert named == ["_config.yml"]
