"""A wider world than shapes and digits: emoji, flags, text, clocks, charts, counting, two images.

Everything is rendered when it is asked for, from a seed, a split and a number; nothing is stored.
Emoji come from an npm package and fonts from the system (docs/world.md is the data card). Needs
numpy and Pillow only.
"""

from vora_serve.world.wide.assets import Assets, find_assets
from vora_serve.world.wide.samples import FAMILIES, Family, WideSample, WideWorld

__all__ = ["FAMILIES", "Assets", "Family", "WideSample", "WideWorld", "find_assets"]
