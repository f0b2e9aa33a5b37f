"""Draw the topology of a deployment and the flow of one request.

    python docs/draw_serving.py [FOLDER]

``deploy/compose.yaml`` is what the topology shows, ``vora_serve/gateway/generation.py`` the flow.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from draw import ACCENT, IMAGE_A, INK, LINE, QUIET, ROOT, TEXT, arrow, box, canvas, save
from matplotlib.patches import Rectangle

GATEWAY, ENGINE, WATCH = "#f7e3bd", "#d5dffb", "#e6d6f2"


def topology(folder: Path) -> None:
    """Who reaches whom, and by what."""
    figure, axes = canvas(10.4, 5.6)
    box(axes, 1, 28, 13, 8, "clients,\nplayground", TEXT)
    box(axes, 21, 28, 14, 8, "your proxy:\nTLS", TEXT)
    box(axes, 43, 46, 19, 6, "image hosts", IMAGE_A)
    for number, y in ((1, 34), (2, 22)):
        box(axes, 43, y, 19, 8, f"gateway {number}:\nkeys, limits, images", GATEWAY)
        arrow(axes, (35, 32), (43, y + 4))
    closed = Rectangle((79, 17), 23, 36, fill=False, ec=LINE, lw=1.2, ls="--")
    axes.add_patch(closed)
    for name, y in (("engine 1", 36), ("engine 2", 28), ("engine 3", 20)):
        box(axes, 82, y, 17, 6, f"{name}:\nvLLM, plugin", ENGINE)
        for gateway in (38, 26):
            arrow(axes, (62, gateway), (82, y + 3))
    box(axes, 81, 45, 19, 5, "checkpoint, read-only", IMAGE_A)
    arrow(axes, (90.5, 45), (90.5, 42))
    arrow(axes, (14, 32), (21, 32))
    arrow(axes, (52.5, 42), (52.5, 46))
    box(axes, 43, 5, 19, 7, "Redis: limits\nof all gateways", IMAGE_A)
    arrow(axes, (52.5, 22), (52.5, 12))
    box(axes, 82, 5, 17, 7, "Prometheus,\nGrafana", WATCH)
    arrow(axes, (82, 9), (63, 22))
    for x, y, words in (
        (17.5, 33, "HTTPS"), (36.5, 37.5, "HTTP/1.1"), (71, 39.7, "HTTP, pixels"),
        (54, 43.4, "GET, addresses checked"), (76.5, 9, "/metrics"),
        (90.5, 14.8, "closed network: only gateways get in"),
    ):  # fmt: skip
        centre = "left" if x == 54 else "center"
        axes.text(x, y, words, ha=centre, fontsize=8, color=QUIET)
    save(figure, folder, "topology")


#: From, to, what is sent; a note where both are the same.
_CLIENT, _GATEWAY, _HOST, _ENGINE = 8, 34, 60, 86
_STEPS = (
    (_CLIENT, _GATEWAY, "POST /v1/chat/completions"),
    (_GATEWAY, _GATEWAY, "read and check the body; key, model, limits, budget"),
    (_GATEWAY, _HOST, "GET, if the image is a URL"),
    (_HOST, _GATEWAY, "bytes, within size and time"),
    (_GATEWAY, _GATEWAY, "decode, orient, resize to what the model takes"),
    (_GATEWAY, _GATEWAY, "wait for a place in the fair queue; choose an engine"),
    (_GATEWAY, _ENGINE, "the request, with pixels"),
    (_ENGINE, _ENGINE, "patches and text as one sequence; prefill, decode"),
    (_ENGINE, _GATEWAY, "tokens, one event each"),
    (_GATEWAY, _CLIENT, "stream of events, as they come"),
    (_ENGINE, _GATEWAY, "usage"),
    (_GATEWAY, _GATEWAY, "count tokens against limits and budget; metrics, trace"),
)


def request(folder: Path) -> None:
    """One streamed request about an image, from top to bottom."""
    figure, axes = canvas(9.6, 6.4)
    top, step = 54, 4.2
    heads = (
        (_CLIENT, "client", TEXT), (_GATEWAY, "gateway", GATEWAY),
        (_HOST, "image host", IMAGE_A), (_ENGINE, "engine", ENGINE),
    )  # fmt: skip
    for x, name, colour in heads:
        axes.plot((x, x), (2, top + 2), color=LINE, lw=1.2, zorder=0)
        box(axes, x - 7, top + 2, 14, 5, name, colour)
    for number, (start, end, words) in enumerate(_STEPS):
        y = top - 1.5 - number * step
        if start == end:
            note(axes, start, y, words)
            continue
        arrow(axes, (start, y), (end, y))
        axes.text((start + end) / 2, y + 0.7, words, ha="center", fontsize=8, color=INK)
    axes.text(
        2, 0, "If the client hangs up, at any step, the engine stops.", fontsize=8.5, color=ACCENT
    )
    save(figure, folder, "request")


def note(axes: Any, x: float, y: float, words: str) -> None:
    """What happens within one lane."""
    axes.text(
        x, y, words, ha="center", va="center", fontsize=8, color=INK,
        bbox={"boxstyle": "round,pad=0.35", "fc": "#f4f5f7", "ec": LINE},
    )  # fmt: skip


def main() -> None:
    """Draw both."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (topology, request):
        draw(folder)


if __name__ == "__main__":
    main()
