"""``data/emoji-hands.png``: some emoji in two hands, the pictures that lesson 11 edits, and their names beside it.

``python -m tools.emoji_sheet`` writes both from the archives below MINIDIFF_DATA, reduced to 64 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from minidiff.data.emoji import HANDS, Emoji
from minidiff.pixels import to_uint8
from tools.lessons import ROOT

SIZE = 64
DRAWINGS = "Noto Emoji (Google; SIL Open Font License 1.1, Apache License 2.0), Fluent Emoji (Microsoft; MIT License)"
NAMES = (
    "red apple", "red heart", "orange book", "yellow heart", "green circle", "blue heart", "purple circle",
    "red square", "yellow circle", "orange circle", "green heart", "blue circle",
    "green apple", "purple heart", "blue book", "green book", "orange heart", "red circle", "blue square",
    "bell", "butterfly", "bison", "tiger face", "sunflower", "jack o lantern", "banana", "pizza", "teapot", "umbrella",
    "rocket", "violin", "snowman", "octopus", "cactus", "mushroom", "crab", "tulip", "strawberry", "frog", "owl",
)  # fmt: skip


def main(out: Path = ROOT / "data") -> None:
    """Write the sheet, a row for each hand, and the names of its columns."""
    emoji = Emoji(size=SIZE, hands=tuple(HANDS))
    place = {(int(hand), text): i for i, (hand, text) in enumerate(zip(emoji.labels, emoji.texts, strict=True))}
    rows = [torch.cat([emoji[place[hand, name]][0] for name in NAMES], 2) for hand in range(len(HANDS))]
    sheet = to_uint8(torch.cat(rows, 1)).permute(1, 2, 0).numpy()
    Image.fromarray(sheet).save(out / "emoji-hands.png", optimize=True)
    about = {"size": SIZE, "hands": list(HANDS), "names": list(NAMES), "drawings": DRAWINGS}
    (out / "emoji-hands.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
