"""Make .venv from requirements.lock, or do nothing when it is already what the lock says.

Runs on whatever Python the caller has, however old, so it keeps to what they all understand.
"""

import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, ".minidiff-lock")
SUPPORTED = ((3, 10), (3, 13))


def wanted():
    """Hash of the files that decide what is installed."""
    digest = hashlib.sha256()
    for name in ("requirements.lock", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def installed():
    try:
        with open(STAMP) as file:
            return file.read() if os.path.exists(PYTHON) else ""
    except OSError:
        return ""


def unsupported(version):
    """What to say to a Python this project does not run on; empty for one that it does."""
    if SUPPORTED[0] <= tuple(version[:2]) <= SUPPORTED[1]:
        return ""
    return "Python {}.{} to {}.{} is needed, and this is {}.{}; name another one: make test PYTHON=python3.12".format(
        *(SUPPORTED[0] + SUPPORTED[1] + tuple(version[:2]))
    )


def run(*command):
    return subprocess.call(command, cwd=ROOT) == 0


def install():
    """An error message, or nothing when all is installed."""
    if not os.path.exists(PYTHON) and not run(sys.executable, "-m", "venv", VENV):
        return "could not make .venv; on Debian and Ubuntu the package python3-venv is needed"
    pip = [PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    fast = run(PYTHON, "-m", "uv", "--version") or run(*(pip + ["install", "uv"]))
    # uv takes seconds where pip takes minutes; where it cannot work, pip does the same. Bytecode is compiled once here:
    # where Python may not write it, every later start would compile torch again
    uv = [PYTHON, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", PYTHON, "-r", "requirements.lock"]
    if not (fast and run(*uv)) and not run(*(pip + ["install", "-r", "requirements.lock"])):
        return "could not install requirements.lock: is the package index reachable? The reason stands above."
    if not run(*(pip + ["install", "--no-deps", "--no-build-isolation", "--editable", "."])):
        return "could not install minidiff itself; the reason stands above"
    return ""


def main():
    if wanted() == installed():
        return 0
    problem = unsupported(sys.version_info)
    if not problem:
        print("Installing the packages of requirements.lock into .venv (minutes the first time)", flush=True)
        problem = install()
    if problem:
        sys.stderr.write("minidiff: " + problem + "\n")
        return 1
    with open(STAMP, "w") as file:
        file.write(wanted())
    return 0


if __name__ == "__main__":
    sys.exit(main())
