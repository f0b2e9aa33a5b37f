"""A package of emoji in the form of npm's, where the real one is not installed."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw


def fake_package(folder: Path, emoji: int = 64, flags: int = 6) -> Path:
    """Plain red discs instead of emoji and flags, each with a name of its own."""
    images = folder / "img" / "google" / "64"
    images.mkdir(parents=True)
    entries = []
    for number in range(emoji + flags):
        letters = chr(97 + number // 26) + chr(97 + number % 26)
        is_flag = number >= emoji
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        ImageDraw.Draw(image).ellipse((4, 4, 60, 60), fill=(255, 3 * number, 0, 255))
        image.save(images / f"{letters}.png")
        entries.append(
            {
                "name": f"{letters.upper()} Flag" if is_flag else f"THING {letters.upper()}",
                "category": "Flags" if is_flag else "Objects",
                "image": f"{letters}.png",
                "has_img_google": True,
            }
        )
    entries.append(entries[0] | {"name": "KEYCAP 10"})
    entries.append(entries[0] | {"name": "NOT DRAWN", "has_img_google": False})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder
