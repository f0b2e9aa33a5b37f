"""Draw the images of the concepts page from the code that they are about.

    python docs/draw.py [FOLDER]

The mask and the segments come from ``model_plugin.spans``, sizes and patches from
``model_plugin.images``, attention from ``vora_serve.explain`` and the demo model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

INK, QUIET, LINE = "#1b1f24", "#59616b", "#c9cdd2"
TEXT, IMAGE_A, IMAGE_B, ACCENT = "#dfe3ea", "#f4c26b", "#9bc4a1", "#3457d5"
ROOT = Path(__file__).resolve().parents[1]
mpl.rcParams.update(
    {"svg.hashsalt": "vora", "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK}
)


def save(figure: Any, folder: Path, name: str) -> None:
    """As SVG on white, so that it reads in the dark as well."""
    figure.savefig(
        folder / f"{name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None}
    )
    plt.close(figure)


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure without axes, in its own units."""
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set_xlim(0, width * 10)
    axes.set_ylim(0, height * 10)
    axes.axis("off")
    return figure, axes


def box(axes: Any, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    """A labelled box."""
    shape = FancyBboxPatch(
        (x, y), w, h, boxstyle="round,pad=0,rounding_size=1.2", fc=colour, ec=LINE, lw=1
    )
    axes.add_patch(shape)
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9)


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From here to there."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=QUIET))


def architecture(folder: Path) -> None:
    """An encoder-based model beside VoRA."""
    figure, axes = canvas(8.4, 3.6)
    for x, title in ((2, "With a vision encoder"), (46, "VoRA, as it is served")):
        axes.text(x, 33.5, title, fontsize=11, fontweight="bold")
    box(axes, 2, 4, 14, 5, "image", IMAGE_A)
    box(axes, 2, 12, 14, 8, "vision encoder\n(a model of\nits own)", "#e6d6f2")
    box(axes, 2, 23, 14, 5, "projector", "#e6d6f2")
    box(axes, 20, 4, 14, 5, "question", TEXT)
    box(axes, 20, 12, 14, 16, "LLM", "#d5dffb")
    arrow(axes, (9, 9), (9, 12))
    arrow(axes, (9, 20), (9, 23))
    arrow(axes, (16, 25.5), (20, 25.5))
    arrow(axes, (27, 9), (27, 12))
    box(axes, 46, 4, 14, 5, "image", IMAGE_A)
    box(axes, 46, 12, 14, 8, "patch embedder\n(a few million\nparameters)", "#d5dffb")
    box(axes, 64, 4, 14, 5, "question", TEXT)
    box(axes, 64, 12, 18, 16, "LLM that has\nlearnt to see\n(LoRA, merged)", "#d5dffb")
    arrow(axes, (53, 9), (53, 12))
    arrow(axes, (60, 16), (64, 16))
    arrow(axes, (71, 9), (71, 12))
    save(figure, folder, "architecture")


def _sequence() -> tuple[list[str], list[tuple[int, int]]]:
    kinds = ["t"] * 3 + ["a"] * 4 + ["t"] * 2 + ["b"] * 3 + ["t"] * 3
    return kinds, [(3, 6), (9, 11)]


def attention_rule(folder: Path) -> None:
    """The rule as the matrix that ``dense_mask`` gives."""
    from model_plugin.spans import block_ids, dense_mask

    kinds, spans = _sequence()
    ids = block_ids(len(kinds), spans)[None]
    visible = dense_mask(ids, ids)[0].numpy()
    figure, axes = plt.subplots(figsize=(5.2, 5.2))
    size = len(kinds)
    for q in range(size):
        for k in range(size):
            colour = "#ffffff"
            if visible[q, k]:
                colour = "#b9c7f3" if k <= q else "#f4c26b"
            axes.add_patch(Rectangle((k, size - 1 - q), 1, 1, fc=colour, ec=LINE, lw=0.7))
    fills = {"t": TEXT, "a": IMAGE_A, "b": IMAGE_B}
    for index, kind in enumerate(kinds):
        axes.add_patch(Rectangle((index, size + 0.25), 1, 0.8, fc=fills[kind], ec=LINE, lw=0.7))
        axes.add_patch(
            Rectangle((-1.05, size - 1 - index), 0.8, 1, fc=fills[kind], ec=LINE, lw=0.7)
        )
    axes.text(size / 2, size + 1.4, "keys: text, image 1, text, image 2, text", ha="center")
    axes.text(-1.5, size / 2, "queries", rotation=90, va="center", ha="center")
    axes.text(
        size / 2, -0.9, "blue: causal      amber: later tokens of the same image",
        ha="center", color=QUIET, fontsize=9,
    )  # fmt: skip
    axes.set_xlim(-2, size + 0.2)
    axes.set_ylim(-1.4, size + 2)
    axes.set_aspect("equal")
    axes.axis("off")
    save(figure, folder, "attention-rule")


def segments(folder: Path) -> None:
    """How a request's queries are split, over the pages of its KV cache."""
    from model_plugin.spans import split_segments

    kinds, spans = _sequence()
    parts = split_segments(0, len(kinds), spans)
    fills = {"t": TEXT, "a": IMAGE_A, "b": IMAGE_B}
    figure, axes = plt.subplots(figsize=(8, 3.4))
    block = 4
    for index, kind in enumerate(kinds):
        axes.add_patch(Rectangle((index, 0), 1, 1, fc=fills[kind], ec=LINE, lw=0.8))
        axes.text(index + 0.5, 0.5, str(index), ha="center", va="center", fontsize=8)
    for start in range(0, len(kinds), block):
        end = min(start + block, len(kinds))
        axes.add_patch(Rectangle((start, -0.12), end - start, 1.24, fill=False, ec=INK, lw=1.4))
        axes.text(
            (start + end) / 2, -0.75, f"block {start // block}", ha="center", va="center",
            fontsize=8, color=QUIET,
        )  # fmt: skip
    axes.text(len(kinds) + 0.4, 0.5, "paged KV cache", va="center", fontsize=9)
    for row, part in enumerate(parts):
        y = 2 + (len(parts) - 1 - row) * 0.95
        axes.add_patch(Rectangle((0, y), part.kv_len, 0.6, fc="#eef0f3", ec="none"))
        colour = "#b9c7f3" if part.causal else "#f4c26b"
        axes.add_patch(Rectangle((part.start, y), len(part), 0.6, fc=colour, ec=QUIET, lw=0.8))
        kind = "causal" if part.causal else "non-causal"
        axes.text(
            len(kinds) + 0.4, y + 0.3,
            f"queries {part.start} to {part.end - 1}, {kind}, sees keys 0 to {part.kv_len - 1}",
            va="center", fontsize=8.5,
        )  # fmt: skip
    axes.set_xlim(-0.3, len(kinds) + 10.5)
    axes.set_ylim(-1.2, 2.2 + len(parts) * 0.95)
    axes.axis("off")
    save(figure, folder, "segments")


def patches(folder: Path) -> None:
    """An image at native resolution, at two bounds on its pixels, and padded to a square."""
    from model_plugin.images import ImageSettings
    from vora_serve.explain.look import served_image
    from vora_serve.world.scenes import random_scene, render

    image = render(random_scene(11, "test", 0))
    small = ImageSettings("native", 8, 1, min_pixels=2304, max_pixels=4608)
    large = ImageSettings("native", 8, 1, min_pixels=2304, max_pixels=18432)
    square = ImageSettings("fixed", 8, 1, image_size=64, resize_edge=64)
    ways = [
        ("native, up to 4,608 pixels", small),
        ("native, up to 18,432 pixels", large),
        ("fixed, 64 x 64", square),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(8.4, 4))
    for place, (title, settings) in zip(axes, ways, strict=True):
        served = served_image(image, settings)
        place.imshow(
            np.asarray(served), interpolation="nearest", extent=(0, served.width, served.height, 0)
        )
        for x in range(0, served.width + 1, 8):
            place.axvline(x, color="white", lw=0.6)
        for y in range(0, served.height + 1, 8):
            place.axhline(y, color="white", lw=0.6)
        tokens = settings.num_tokens(*image.size)
        place.set_title(title, fontsize=9)
        place.set_xlabel(f"{served.width} x {served.height} px, {tokens} tokens", fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
    figure.suptitle(f"An image of {image.width} x {image.height} pixels", fontsize=10)
    save(figure, folder, "patches")


def seeing(folder: Path) -> None:
    """Attention of the demo model's answer, layer by layer."""
    import torch

    from vora_serve.explain import Explainer
    from vora_serve.explain.draw import overlay, sheet
    from vora_serve.explain.look import served_image
    from vora_serve.world.scenes import random_scene, render

    explainer = Explainer(ROOT / "vora_serve" / "demo" / "checkpoint", dtype=torch.float32)
    image = render(random_scene(11, "test", 0))
    content = [
        {"type": "image", "image": image},
        {"type": "text", "text": "How many shapes are there?"},
    ]
    result = explainer.explain([{"role": "user", "content": content}])
    served = served_image(image, explainer.processor.settings)
    by_layer = result.of_image(0).mean(axis=0)
    drawn: list[Image.Image] = [overlay(served, layer, 300) for layer in by_layer]
    sheet(drawn, len(drawn)).save(folder / "seeing.png", optimize=True)


def adapters(folder: Path) -> None:
    """Specialists: whole models with encoders, beside one LLM with vision adapters."""
    figure, axes = canvas(9.6, 4.6)
    axes.text(2, 43, "Specialists with vision encoders", fontsize=11, fontweight="bold")
    axes.text(50, 43, "One LLM, a vision adapter for each request", fontsize=11, fontweight="bold")
    kinds = (("documents", IMAGE_A), ("charts", IMAGE_B), ("scans", "#e9b9b0"))
    for row, (name, colour) in enumerate(kinds):
        y = 30 - 13 * row
        box(axes, 2, y, 10, 8, name, colour)
        box(axes, 15, y, 11, 8, "encoder,\nprojector", "#e6d6f2")
        box(axes, 29, y, 15, 8, "LLM, tuned:\nanother copy", "#d5dffb")
        arrow(axes, (12, y + 4), (15, y + 4))
        arrow(axes, (26, y + 4), (29, y + 4))
    for row, (name, colour) in enumerate(kinds):
        y = 33 - 9 * row
        box(axes, 50, y, 10, 6, name, colour)
        box(axes, 63, y, 12, 6, "embedder", colour)
        arrow(axes, (60, y + 3), (63, y + 3))
        arrow(axes, (75, y + 3), (79, y + 3))
        box(axes, 82.5, y, 10, 6, "LoRA", colour)
    box(axes, 50, 4, 10, 6, "text", TEXT)
    arrow(axes, (60, 7), (79, 7))
    shape = FancyBboxPatch(
        (79, 1), 17, 40, boxstyle="round,pad=0,rounding_size=1.2", fc="none", ec=ACCENT, lw=1.6
    )
    axes.add_patch(shape)
    axes.text(87.5, 7, "LLM,\nunchanged", ha="center", va="center", fontsize=9)
    save(figure, folder, "adapters")


def main() -> None:
    """Draw all of them."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "concepts"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (architecture, attention_rule, segments, patches, seeing, adapters):
        draw(folder)


if __name__ == "__main__":
    main()
