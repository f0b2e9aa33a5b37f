"""Throughput of the image processor: ``python -m benchmarks.images.processor``.

From decoded images, paired with transformers' CLIP image processor on the same cores: both get
the same list of images, and take turns. Then from JPEG, PNG and WebP files, where decoding is the
least that there is to do. Memory peaks are each of a fresh process.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.images.files import encode, photograph
from model_plugin.decoding import decode
from model_plugin.images import ImageSettings, preprocess_patches
from model_plugin.processor import VoRAImageProcessor
from vora_core.resampling import available_threads, spread

#: Width and height of the images: about 0.3, 1, 3, 6 and 12 megapixels.
SIZES = ((640, 480), (1152, 864), (2048, 1536), (2880, 2160), (4000, 3000))
FORMATS = ("JPEG", "PNG", "WEBP")


def paired(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each; they take turns, after one turn that is not counted."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start, busy = time.perf_counter(), time.process_time()
            run()
            if turn:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - busy)
    return {name: (median(wall[name]), median(cpu[name])) for name in runs}


def clip_processors(side: int) -> dict[str, Any]:
    """transformers' CLIP image processors that are installed, by name."""
    import transformers

    found: dict[str, Any] = {}
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    for name in ("CLIPImageProcessorPil", "CLIPImageProcessor"):
        made = getattr(transformers, name)(**size)
        # Without torchvision the second is the first.
        found.setdefault(type(made).__name__, made)
    return found


def decoded(settings: ImageSettings, repeats: int, count: int, sizes: int) -> list[str]:
    """The table for decoded images."""
    ours, clips = VoRAImageProcessor(settings), clip_processors(settings.image_size)
    lines = ["| image | processor | images/s | CPU ms an image | VoRA's throughput over it |"]
    lines.append("|---|---|---|---|---|")
    for width, height in SIZES[:sizes]:
        images = [photograph(width, height, seed) for seed in range(count)]
        native = VoRAImageProcessor(ImageSettings(resolution="native"))
        runs: dict[str, Callable[[], object]] = {
            "VoRA, fixed": partial(ours, images),
            "VoRA, native": partial(native, images),
        }
        for name, clip in clips.items():
            runs[name] = partial(clip, images, return_tensors="np")
        times = paired(runs, repeats)
        own = times["VoRA, fixed"][0]
        for name, (wall, cpu) in times.items():
            ratio = "" if name.startswith("VoRA") else f"{wall / own:.2f}"
            lines.append(
                f"| {width}x{height} | {name} | {count / wall:.1f} | {1e3 * cpu / count:.1f} "
                f"| {ratio} |"
            )
    return lines


def size_of(data: bytes) -> tuple[int, int]:
    """Decode a file and forget it."""
    return decode(data)[0].size


def files(settings: ImageSettings, repeats: int, count: int, sizes: int) -> list[str]:
    """The table for image files."""
    ours = VoRAImageProcessor(settings)
    threads = available_threads()
    lines = [
        "| file | MB | decoding alone, images/s | with processing, images/s | share of decoding "
        "| scaled decoding, images/s | its mean pixel difference | peak MiB (scaled) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for width, height in SIZES[1:sizes]:
        for kind in FORMATS:
            data = [encode(photograph(width, height, seed), kind) for seed in range(count)]
            runs: dict[str, Callable[[], object]] = {
                "decode": partial(spread, size_of, data, threads),
                "whole": partial(ours, data),
            }
            if kind == "JPEG":
                runs["scaled"] = partial(ours, data, scaled_jpeg=True)
            times = paired(runs, repeats)
            bare, whole = times["decode"][0], times["whole"][0]
            row = [
                f"{width}x{height} {kind}",
                f"{np.mean([len(file) for file in data]) / 1e6:.1f}",
                f"{count / bare:.1f}",
                f"{count / whole:.1f}",
                f"{bare / whole:.0%}",
            ]
            if kind == "JPEG":
                row += [
                    f"{count / times['scaled'][0]:.1f}",
                    f"{_difference(data[0], settings):.4f}",
                ]
                row.append(f"{_peak(kind, width, height)} ({_peak(kind, width, height, True)})")
            else:
                row += ["", "", f"{_peak(kind, width, height)}"]
            lines.append("| " + " | ".join(row) + " |")
    return lines


def _difference(data: bytes, settings: ImageSettings) -> float:
    """Mean absolute difference that scaled decoding makes, in normalised units."""
    exact = preprocess_patches(decode(data)[0], settings)[0]
    image, size = decode(data, settings, scaled_jpeg=True)
    return float(np.abs(preprocess_patches(image, settings, size=size)[0] - exact).mean())


def _peak(kind: str, width: int, height: int, scaled: bool = False) -> int:
    """Memory in MiB that one file takes at its peak, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.images.processor",
        "--peak",
        kind,
        str(width),
        str(height),
    ]
    run = subprocess.run(
        [*command, str(int(scaled))], capture_output=True, text=True, check=True, env=os.environ
    )
    return int(run.stdout)


def peak(kind: str, width: int, height: int, scaled: bool) -> int:
    """What ``_peak`` runs: the peak above what the process takes without an image."""
    read, write = os.pipe()
    if not os.fork():
        os.write(write, encode(photograph(width, height, 0), kind))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    ours = VoRAImageProcessor(ImageSettings())
    ours([photograph(64, 48, 0)])
    # Linux forgets the peak of what was imported, and counts anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_kib("VmRSS")
    ours([data], scaled_jpeg=scaled)
    return (_resident_kib("VmHWM") - before) // 1024


def _resident_kib(field: str) -> int:
    """A field of this process's memory, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Print both tables, and what they were measured on."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images.processor", description=__doc__
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--count", type=int, default=8, help="images in a call [8]")
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes [all]")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        kind, width, height, scaled = options.peak
        sys.stdout.write(str(peak(kind, int(width), int(height), scaled == "1")))
        return
    import PIL
    import transformers

    settings = ImageSettings()
    load = os.getloadavg()[0]
    out = [
        f"{platform.machine()}, {available_threads()} cores, load average {load:.1f} at the start; "
        f"Python {platform.python_version()}, Pillow {PIL.__version__}, "
        f"transformers {transformers.__version__}; {options.count} images a call, medians of "
        f"{options.repeats} turns.",
        "",
        *decoded(settings, options.repeats, options.count, options.sizes),
        "",
        *files(settings, options.repeats, options.count, options.sizes),
    ]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
