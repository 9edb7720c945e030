"""Captioned emoji: Noto Emoji's pictures under their Unicode (CLDR) names, "red apple" say.

Real pictures with short captions, few enough for one CPU core. The pictures are files ``emoji_uXXXX[_YYYY].png`` in a
folder or a zip archive, such as the release of github.com/googlefonts/noto-emoji; the names come from the ``emoji``
package.

Skin tones are left out: five of them for each person and hand make more than half of the archive, and differ from the
picture without tone in one colour. Training would see faces and hands most of the time, and hardly any apple.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from functools import cache
from pathlib import Path

import torch

from ..download import Downloaded, fetch
from .images import ImageFolder, Images

URL = "https://github.com/googlefonts/noto-emoji/archive/refs/tags/v2.047.zip"
ARCHIVE = "emoji.zip"
WORDS = Path(__file__).with_name("emoji-words.txt")
CONTEXT = 16
SPLITS = ("all", "train", "heldout")
ONE_IN = 4  # of the names is held out, if its words are seen in others
_FILE = re.compile(r"(?:.*/)?emoji_u([0-9a-f]+(?:_[0-9a-f]+)*)\.png")
_SIZES = re.compile(r"(?:^|/)png/(?!128/)\d+/")  # the release holds every picture in several


def caption(name: str) -> str:
    """A name as plain words: lower case, ASCII letters, digits and apostrophes; "1st place medal", "o'clock"."""
    plain = unicodedata.normalize("NFKD", name.replace("\u2019", "'")).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9'#*]+", plain))


@cache
def names() -> dict[str, str]:
    """Caption by code points ("1f34e") of every emoji without skin tone, variation selectors aside.

    Raises:
        ValueError: when the ``emoji`` package is not installed.
    """
    try:
        from emoji import EMOJI_DATA
    except ImportError:
        raise ValueError("the names of emoji come from a package: pip install emoji") from None
    found: dict[str, str] = {}
    for character, about in EMOJI_DATA.items():
        text = caption(about["en"])
        if "skin tone" not in text:
            found.setdefault(_key(f"{ord(c):x}" for c in character), text)
    return found


def _key(points) -> str:
    return "_".join(point.lstrip("0") for point in points if point.lstrip("0") != "fe0f")


def heldout(captions: list[str]) -> set[str]:
    """Captions to hold out: those that a hash chooses, one in four, and whose words all occur in captions it does not.

    So they ask for combinations of words that training has seen apart ("black heart" from "black" and "heart"), or for
    a word alone that it has seen with others.
    """
    chosen = {c for c in captions if _hash(c) % ONE_IN == 0}
    words = {word for c in captions if c not in chosen for word in c.split()}
    return {c for c in chosen if words.issuperset(c.split())}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _place(path: str | os.PathLike | None) -> Path:
    where = path or os.environ.get("MINIDIFF_DATA")
    if not where:
        raise ValueError("emoji are not part of the package: name their folder in data.path or MINIDIFF_DATA")
    archive = Path(where) / ARCHIVE
    return archive if archive.is_file() else Path(where)


def _captioned(folder: ImageFolder) -> dict[str, int]:
    """Caption -> number of its picture."""
    known, found = names(), {}
    for i, name in enumerate(folder.names):
        match = _FILE.fullmatch(name)
        text = known.get(_key(match[1].split("_"))) if match and not _SIZES.search(name) else None
        if text is not None:
            found.setdefault(text, i)
    if not found:
        raise ValueError(f"no emoji in {folder.path}: files such as png/128/emoji_u1f34e.png are accepted")
    return found


class Emoji(Images):
    """Noto Emoji with captions; item i is (image (3, H, W) float32 in [-1, 1] over white, caption).

    Args:
        path: Folder or zip archive with the pictures, or the folder where ``emoji.zip`` lies; the environment variable
            ``MINIDIFF_DATA`` when left out.
        size: Side in pixels; None leaves the files' 128.
        split: "train", "heldout" (see ``heldout``), or "all".

    Attributes:
        captions: Caption by the name of the picture, in the order of the pictures.

    Raises:
        ValueError: for another split, or when the pictures or the ``emoji`` package are not there.
    """

    def __init__(self, path: str | os.PathLike | None = None, size: int | None = None, split: str = "all"):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        self._folder = ImageFolder(_place(path))
        vocabulary = set(words())
        found = {text: i for text, i in _captioned(self._folder).items() if vocabulary.issuperset(text.split())}
        hidden = heldout(list(found))
        kept = {text: i for text, i in found.items() if split == "all" or (text in hidden) == (split == "heldout")}
        self._texts, self._index = tuple(kept), tuple(kept.values())
        self.captions = {self._folder.names[i]: text for text, i in kept.items()}
        super().__init__(self._folder.path, torch.zeros(len(kept), dtype=torch.long), size, False)

    def name(self, i: int) -> str:
        return self._folder.name(self._index[i])

    def read(self, i: int) -> bytes:
        return self._folder.read(self._index[i])

    def targets(self, i: int) -> tuple[str]:
        return (self._texts[i],)


def words() -> tuple[str, ...]:
    """The vocabulary, from a file beside this module: names may change in later versions of the ``emoji`` package.

    Pictures whose new names have other words are left out.
    """
    return tuple(WORDS.read_text(encoding="utf-8").split())


def write_words(path: str | os.PathLike | None = None) -> None:
    """Write the vocabulary anew, from the captions of all pictures below ``path``, which is as ``Emoji`` takes it."""
    found = {word for text in _captioned(ImageFolder(_place(path))) for word in text.split()}
    WORDS.write_text("\n".join(sorted(found)) + "\n", encoding="utf-8")


def download(root: str | os.PathLike, quiet: bool = False) -> Downloaded:
    """Fetch the release archive of Noto Emoji as ``emoji.zip`` into a folder. Written for, not run here.

    Raises:
        ValueError: when it cannot be fetched.
    """
    return fetch(URL, Path(root) / ARCHIVE, quiet=quiet)
