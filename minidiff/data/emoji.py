"""Captioned emoji in two hands: Noto Emoji, which is flat, and Fluent Emoji 3D, which is rendered.

Real pictures under their Unicode (CLDR) names, "red apple" say, few enough for one CPU core. The pictures are files
``emoji_uXXXX[_YYYY].png`` or ``.webp`` in a folder or a zip archive, see ``HANDS``; the names come from the ``emoji``
package.

Skin tones are left out: five of them for each person and hand make more than half of the archive, and differ from the
picture without tone in one colour. Training would see faces and hands most of the time, and hardly any apple. So are
the flags of countries, named by words that no other picture has.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ..arguments import Count, checked
from ..download import Downloaded, fetch
from ..words import nearest
from .images import ImageFolder, Images

URL = "https://github.com/googlefonts/noto-emoji/archive/refs/tags/v2.047.zip"
WORDS = Path(__file__).with_name("emoji-words.txt")
CONTEXT = 16
SPLITS = ("all", "train", "heldout")
ONE_IN = 4  # of the names is held out, if its words are seen in others
_SIZES = re.compile(r"(?:^|/)png/(?!128/)\d+/")  # the release holds every picture in several


@checked
@dataclass(frozen=True)
class Hand:
    """One who drew them all.

    Attributes:
        word: What a caption that names the hand begins with; no emoji's name has it.
        archive: File that holds the pictures.
        suffix: Of their names.
        source: Where the archive comes from.
    """

    word: str
    archive: str
    suffix: str
    source: str

    def points(self, name: str) -> str | None:
        """The code points that a file is named by, "1f34e"; None for a file that is no picture of this hand."""
        match = re.fullmatch(rf"(?:.*/)?emoji_u([0-9a-f]+(?:_[0-9a-f]+)*)\.{self.suffix}", name)
        return _key(match[1].split("_")) if match and not _SIZES.search(name) else None


HANDS = {
    "noto": Hand("drawn", "emoji.zip", "png", "minidiff data download emoji"),
    "fluent": Hand(
        "rendered",
        "fluent.zip",
        "webp",
        "npm pack @lobehub/fluent-emoji-3d (MIT; drawings by Microsoft, MIT), then a zip archive of its pictures, each "
        "named emoji_uXXXX[_YYYY].webp by its code points, without fe0f",
    ),
}


@checked
def caption(name: str) -> str:
    """A name as plain words: lower case, ASCII letters, digits and apostrophes; "1st place medal", "o'clock"."""
    plain = unicodedata.normalize("NFKD", name.replace("\u2019", "'")).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9'#*]+", plain))


@cache
def names() -> dict[str, str]:
    """Caption by code points ("1f34e") of every emoji without skin tone and country, variation selectors aside.

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
        if "skin tone" not in text and not "\U0001f1e6" <= character[0] <= "\U0001f1ff":
            found.setdefault(_key(f"{ord(c):x}" for c in character), text)
    return found


def _key(points) -> str:
    return "_".join(point.lstrip("0") for point in points if point.lstrip("0") != "fe0f")


@checked
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


def _pictures(path: str | os.PathLike | None, hand: str) -> tuple[ImageFolder, dict[str, int]]:
    """Where the pictures of a hand lie, and caption -> number of its picture."""
    where = path or os.environ.get("MINIDIFF_DATA")
    if not where:
        raise ValueError("emoji are not part of the package: name their folder in data.path or MINIDIFF_DATA")
    about, known, found = HANDS[hand], names(), {}
    archive = Path(where) / about.archive
    try:
        folder = ImageFolder(archive if archive.is_file() else where)
    except ValueError as error:
        raise ValueError(f"no emoji by {hand}: {error}; {about.archive} comes from {about.source}") from None
    for i, name in enumerate(folder.names):
        text = known.get(about.points(name))
        if text is not None:
            found.setdefault(text, i)
    if not found:
        raise ValueError(
            f"no emoji by {hand} in {folder.path}: files such as emoji_u1f34e.{about.suffix} are accepted; "
            f"{about.archive} comes from {about.source}"
        )
    return folder, found


@checked
class Emoji(Images):
    """Emoji with captions; item i is (image (3, H, W) float32 in [-1, 1] over white, caption).

    A name that several hands drew has a picture of each, one hand after the other; all lie in the same split.

    Args:
        path: The folder where the archives of ``HANDS`` lie, or a folder or an archive with the pictures themselves;
            the environment variable ``MINIDIFF_DATA`` when left out.
        size: Side in pixels; None leaves the files' own.
        split: "train", "heldout" (see ``heldout``), or "all".
        hands: Whose pictures, of ``HANDS``, each once.

    Attributes:
        texts: (N,) captions. spoken: the same with the hand, "rendered red apple".
        captions: Caption by the name of the picture, in the order of the pictures.
        classes: The hands. labels: (N,) numbers of the hands.

    Raises:
        ValueError: for another split or hand, or when the pictures or the ``emoji`` package are not there.
    """

    def __init__(
        self,
        path: str | os.PathLike | None = None,
        size: Count | None = None,
        split: str = "all",
        hands: str | Sequence[str] = ("noto",),
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        hands = (hands,) if isinstance(hands, str) else hands
        for hand in hands:
            if hand not in HANDS:
                raise ValueError(f"nobody called {hand!r} drew emoji: {nearest(hand, HANDS)}")
        if len(set(hands)) < len(hands):
            raise ValueError(f"each hand is named once, got {', '.join(hands)}")
        if not hands:
            raise ValueError(f"name at least one hand of {', '.join(HANDS)}")
        self.classes, vocabulary = tuple(hands), set(words())
        sources = [_pictures(path, hand) for hand in self.classes]
        known = {text for text in names().values() if vocabulary.issuperset(text.split())}
        hidden = heldout(list(known))  # of all names, whoever drew them: a split is that of every hand
        kept = {"all": known, "heldout": hidden, "train": known - hidden}[split]
        self._folders = [folder for folder, _ in sources]
        drawn = [(hand, i, text) for hand, (_, found) in enumerate(sources) for text, i in found.items()]
        places = [place for place in drawn if place[2] in kept]
        labels, self._index = [hand for hand, _, _ in places], [i for _, i, _ in places]
        self.texts = tuple(text for _, _, text in places)
        self.spoken = tuple(f"{HANDS[self.classes[hand]].word} {text}" for hand, _, text in places)
        super().__init__(path, torch.tensor(labels, dtype=torch.long), size, False)
        self.captions = {self.name(i): text for i, text in enumerate(self.texts)}

    def name(self, i: int) -> str:
        return self._folders[self.labels[i]].name(self._index[i])

    def read(self, i: int) -> bytes:
        return self._folders[self.labels[i]].read(self._index[i])

    def targets(self, i: int) -> tuple[str]:
        return (self.texts[i],)


def words() -> tuple[str, ...]:
    """The vocabulary, from a file beside this module: names may change in later versions of the ``emoji`` package.

    Pictures whose new names have other words are left out.
    """
    return tuple(WORDS.read_text(encoding="utf-8").split())


def hand_words() -> tuple[str, ...]:
    """What captions call the hands."""
    return tuple(about.word for about in HANDS.values())


@checked
def write_words(path: str | os.PathLike | None = None) -> None:
    """Write the vocabulary anew, from all captions below ``path``, which is as for ``Emoji``."""
    texts = [text for hand in HANDS for text in _pictures(path, hand)[1]]
    WORDS.write_text("\n".join(sorted({word for text in texts for word in text.split()})) + "\n", encoding="utf-8")


@checked
def download(root: str | os.PathLike, quiet: bool = False) -> Downloaded:
    """Fetch the release archive of Noto Emoji as ``emoji.zip`` into a folder. Written for, not run here.

    Raises:
        ValueError: when it cannot be fetched.
    """
    found = fetch(URL, Path(root) / HANDS["noto"].archive, quiet=quiet)
    other = HANDS["fluent"]
    return replace(found, checked=f"{found.checked}; the other hand, {other.archive}, comes from {other.source}")
