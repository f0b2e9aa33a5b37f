"""What the wide world is drawn from: emoji and fonts, found on this machine, split by hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageFont

from vora_core.errors import ConfigError
from vora_serve.world.scenes import Split

PACKAGE = "emoji-datasource-google"
#: Where ``npm install --prefix build/world`` puts it.
EMOJI_FOLDER = Path("build/world/node_modules") / PACKAGE
FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
_NAME = re.compile(r"[a-z]+( [a-z]+){0,2}")
_LEFT_OUT = frozenset({"Component", "Symbols", "Flags"})
#: One emoji and one font in so many are seen by the test split alone.
_HELD_OUT = 8
_FLAG = " flag"
#: Fonts that draw something else than Latin letters.
_NO_LETTERS = re.compile(r"symbol|emoji|icon|dingbat|math|glyph|braille|music|mono.*oblique", re.I)
_PROBE = "Hamburgefonstiv"


@dataclass(frozen=True)
class Emoji:
    """One emoji or flag.

    Attributes:
        name: lower case, one to three words; of a flag, the country.
        file: a PNG of 64 x 64 pixels with transparency.
    """

    name: str
    file: Path


@dataclass(frozen=True)
class Assets:
    """What there is to draw.

    Attributes:
        emoji, flags: by name.
        fonts: files that draw Latin letters.
    """

    emoji: tuple[Emoji, ...]
    flags: tuple[Emoji, ...]
    fonts: tuple[Path, ...]

    def fonts_of(self, split: Split) -> tuple[Path, ...]:
        """Fonts of a split; the test split has its own."""
        return tuple(f for f in self.fonts if is_held_out(f.stem) == (split == "test"))

    def countable(self, split: Split) -> tuple[Emoji, ...]:
        """Emoji that are counted and compared; the test split has its own."""
        return tuple(e for e in self.emoji if is_held_out(e.name) == (split == "test"))


def is_held_out(name: str) -> bool:
    """Whether training never sees it; a function of the name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % _HELD_OUT == 0


def find_assets(
    emoji_folder: Path = EMOJI_FOLDER, font_folders: Sequence[Path] = FONT_FOLDERS
) -> Assets:
    """Look for emoji and fonts.

    Args:
        emoji_folder: of the npm package ``emoji-datasource-google``.
        font_folders: searched for TrueType and OpenType files.

    Raises:
        ConfigError: they are not there; the sentence names the command that brings them.
    """
    emoji, flags = _read_emoji(emoji_folder)
    fonts = tuple(_fonts(font_folders))
    found = Assets(emoji, flags, fonts)
    if not found.fonts_of("train") or not found.fonts_of("test"):
        raise ConfigError(
            f"There are too few fonts with Latin letters ({len(fonts)}). Run: apt-get install "
            "fonts-dejavu fonts-liberation fonts-freefont-ttf"
        )
    return found


def _read_emoji(folder: Path) -> tuple[tuple[Emoji, ...], tuple[Emoji, ...]]:
    index, images = folder / "emoji.json", folder / "img" / "google" / "64"
    if not index.is_file() or not images.is_dir():
        prefix = folder.parents[1] if folder.parent.name == "node_modules" else folder
        raise ConfigError(
            f"There is no {PACKAGE} in {folder}. Run: npm install --prefix {prefix} "
            f"--ignore-scripts {PACKAGE}"
        )
    emoji: dict[str, Emoji] = {}
    flags: dict[str, Emoji] = {}
    for entry in json.loads(index.read_text(encoding="utf-8")):
        name = str(entry["name"] or "").lower()
        file = images / str(entry["image"])
        is_flag = entry["category"] == "Flags" and name.endswith(_FLAG)
        name = name.removesuffix(_FLAG) if is_flag else name
        usable = is_flag or entry["category"] not in _LEFT_OUT
        if entry["has_img_google"] and usable and _NAME.fullmatch(name) and file.is_file():
            (flags if is_flag else emoji).setdefault(name, Emoji(name, file))
    if len(emoji) < 2 * _HELD_OUT or len(flags) < 4:
        raise ConfigError(f"The {PACKAGE} in {folder} holds too few images.")
    return tuple(emoji.values()), tuple(flags.values())


def _fonts(folders: Iterable[Path]) -> Iterable[Path]:
    """Fonts that draw letters, one file of a name."""
    seen: set[str] = set()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            is_font = file.suffix.lower() in (".ttf", ".otf")
            if is_font and file.stem not in seen and not _NO_LETTERS.search(file.stem):
                seen.add(file.stem)
                if _draws_letters(file):
                    yield file


def _draws_letters(file: Path) -> bool:
    """Whether a font's letters differ from each other: those that it lacks are all one box."""
    try:
        font = ImageFont.truetype(str(file), 20)
        shapes = {bytes(font.getmask(letter)) for letter in _PROBE}
    except (OSError, ValueError):
        return False
    return len(shapes) >= len(set(_PROBE)) - 1


@lru_cache(maxsize=4096)
def load_emoji(file: Path) -> Image.Image:
    """An emoji's image, RGBA; read once."""
    with Image.open(file) as image:
        return image.convert("RGBA")


@lru_cache(maxsize=2048)
def load_font(file: Path, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels; read once."""
    return ImageFont.truetype(str(file), size)
