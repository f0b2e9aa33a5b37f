"""Samples of the wide world that a core renders in a second, by family.

    python -m benchmarks.world [--emoji FOLDER] [--samples N] [--report FILE]

Time is the processor's, not the clock's, so that other work on the machine counts for little.
Training renders as many samples as there are workers times this.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import numpy as np
import PIL

from vora_serve.world.wide import FAMILIES, WideWorld, find_assets
from vora_serve.world.wide.assets import EMOJI_FOLDER


def rates(world: WideWorld, samples: int) -> dict[str, float]:
    """Samples a second of each family, and of all in equal parts."""
    found: dict[str, float] = {}
    for family in FAMILIES:
        world.of_family(family, 0)  # fonts and the like are read once
        start = time.process_time()
        for index in range(1, samples + 1):
            world.of_family(family, index)
        found[family] = samples / (time.process_time() - start)
    found["all in equal parts"] = len(found) / sum(1 / rate for rate in found.values())
    return found


def draw_table(found: dict[str, float]) -> str:
    """The rates as a Markdown table."""
    lines = ["| Family | Samples a second and core | On 16 cores |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {rate:,.0f} | {16 * rate:,.0f} |" for name, rate in found.items()]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--emoji", type=Path, default=EMOJI_FOLDER)
    parser.add_argument("--samples", type=int, default=500, help="Of each family.")
    parser.add_argument("--report", type=Path, help="Markdown file to write.")
    arguments = parser.parse_args()
    assets = find_assets(arguments.emoji)
    table = draw_table(rates(WideWorld(assets, 1), arguments.samples))
    sys.stdout.write(table + "\n")
    if arguments.report is not None:
        text = f"""# Rendering the wide world

`python -m benchmarks.world --samples {arguments.samples}`, {time.strftime("%Y-%m-%d")}. One core of
{platform.machine()}, Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy
{np.__version__}; {len(assets.emoji)} emoji, {len(assets.flags)} flags, {len(assets.fonts)} fonts.
Processor time. The column for 16 cores is the measured rate times 16, not a measurement.

{table}
"""
        arguments.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
