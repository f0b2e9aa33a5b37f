"""The run's report: Markdown with plots beside it, from the sections' files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.engine_report import engine_blocks, saturation_blocks
from benchmarks.gpu.figures import beside_floor, digits, micro
from benchmarks.gpu.findings import Floors, results
from benchmarks.gpu.records import Row
from benchmarks.gpu.sections import SECTIONS
from loadtest.report.render import Block, Heading, Table, Text, to_markdown


def write_report(folder: Path) -> Path:
    """Write ``report.md`` and its plots beside the sections' files, whichever there are."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    found = {}
    for section in SECTIONS:
        file = folder / f"{section.name}.json"
        if file.exists():
            found[section.name] = json.loads(file.read_text(encoding="utf-8"))
    rows = {name: content["rows"] for name, content in found.items()}
    floors = Floors.of(rows.get("floors", ()))
    plots = _draw(rows, floors)
    for name, svg in plots.items():
        if svg is not None:
            (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    blocks = [
        *_head(about, found),
        *_floors(rows.get("floors", ())),
        *_kernels(rows.get("kernels", ()), floors),
        *_plot(plots, "kernels", "Attention with image spans, over its floor"),
        *_end_to_end(rows.get("end-to-end", ())),
        *engine_blocks(_title("engines"), rows.get("engines", ()), floors),
        *_plot(plots, "ttft", "Time to first token in the engine, and its floor"),
        *_plot(plots, "decode", "Tokens per second of decoding, and their ceiling"),
        *saturation_blocks(_title("saturation"), rows.get("saturation", ())),
        *_training({name: rows[name] for name in rows if name.startswith("training")}, floors),
    ]
    kind = "Rehearsal of the evidence run" if about["rehearsal"] else "Evidence run on one GPU"
    report = folder / "report.md"
    report.write_text(to_markdown(kind, blocks), encoding="utf-8")
    return report


def _draw(rows: dict[str, list[Row]], floors: Floors) -> dict[str, str | None]:
    """The plots by name; none where matplotlib is not installed, as on a bare GPU machine."""
    try:
        from benchmarks.gpu.plots import decode_plot, kernel_plot, ttft_plot
    except ModuleNotFoundError:
        return {}
    engines = results(rows.get("engines", ()))
    return {
        "kernels": kernel_plot(rows.get("kernels", ()), floors),
        "ttft": ttft_plot(engines, floors),
        "decode": decode_plot(engines, floors),
    }


def _head(about: dict[str, Any], found: dict[str, Any]) -> list[Block]:
    machine = about["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    device = "; ".join(machine["gpus"]) or "no GPU"
    said = (
        "**A rehearsal with tiny shapes on a CPU: its numbers say nothing about a GPU.** "
        if about["rehearsal"]
        else ""
    )
    table = Table(
        ["section", "seconds", "limit", "state"],
        [
            [name, f"{content['seconds']:.0f}", f"{content['limit_s']:.0f}", content["state"]]
            for name, content in found.items()
        ],
    )
    return [
        Text(
            f"{said}{about['date']}; {device}; {machine['processor']}, {machine['cores']} cores; "
            f"Python {machine['python']}; {versions}. Weights are random; times do not depend on "
            "them. A floor is the time that a measurement's operations would take at the measured "
            "rate of matrix products, or its bytes at the measured rate of copying, whichever is "
            "longer."
        ),
        table,
    ]


def _unit(row: Row) -> str:
    return "TB/s" if row["rate"] == "bytes" else "TFLOP/s"


def _floors(rows: Sequence[Row]) -> list[Block]:
    if not rows:
        return []
    table = Table(
        ["rate", "of", "measured"],
        [
            [
                "bytes copied" if row["rate"] == "bytes" else f"{row['rate']} matrix products",
                row["shape"],
                f"{digits(row['per_second'] / 1e12)} {_unit(row)}",
            ]
            for row in rows
        ],
    )
    return [Heading(_title("floors")), table]


def _kernels(rows: Sequence[Row], floors: Floors) -> list[Block]:
    checks = [
        f"- {'ok' if row['good'] else '**WRONG**'}: {row['kernel']}: {row['said']}"
        for row in rows
        if row["kind"] == "check"
    ]
    lines = [
        [
            f"{row['prompts']} x {row['image']}",
            row["kernel"],
            micro(row["causal_s"]),
            micro(row["spans_s"]),
            digits(row["spans_s"] / row["causal_s"]),
            *beside_floor(row["spans_s"], floors.seconds(row), 1e6),
        ]
        for row in rows
        if row["kind"] == "time"
    ]
    lines += [
        [
            f"{row['images']} x {row['side']} px",
            f"patch embedder, merge {row['merge']}",
            "–",
            micro(row["seconds"]),
            "–",
            *beside_floor(row["seconds"], floors.seconds(row), 1e6),
        ]
        for row in rows
        if row["kind"] == "embedder"
    ]
    if not rows:
        return []
    head = ["prompts x image tokens", "kernel", "causal µs", "spans µs", "spans / causal"]
    return [
        Heading(_title("kernels")),
        Text("\n".join(checks)),
        Table([*head, "floor µs", "times the floor"], lines),
    ]


def _end_to_end(rows: Sequence[Row]) -> list[Block]:
    if not rows:
        return []
    said = [f"{'ok' if row['good'] else '**WRONG**'}, {row['how']}: {row['said']}." for row in rows]
    return [Heading(_title("end-to-end")), Text("\n\n".join(said))]


def _training(sections: dict[str, Sequence[Row]], floors: Floors) -> list[Block]:
    lines = []
    for rows in sections.values():
        for row in rows:
            for name in ("naive", "ours"):
                form = row[name]
                share = form["tflops"] * 1e12 / floors.flops if floors.flops else None
                lines.append(
                    [
                        row["size"],
                        "dense masks" if name == "naive" else "FlexAttention, packed",
                        f"{form['tokens_per_second']:,.0f}",
                        digits(form["tflops"]),
                        digits(100 * share) if share else "–",
                        digits(form["peak_memory_gib"]) if "peak_memory_gib" in form else "–",
                        digits(row["times_as_fast"]) if name == "ours" else "1",
                    ]
                )
    if not lines:
        return []
    head = ["size", "form", "tokens/s", "model TFLOP/s", "% of the measured matmul rate"]
    return [Heading("Training"), Table([*head, "peak GiB", "times as fast"], lines)]


def _plot(plots: dict[str, str | None], name: str, text: str) -> list[Block]:
    return [Text(f"![{text}]({name}.svg)")] if plots.get(name) else []


def _title(name: str) -> str:
    return next(section.title for section in SECTIONS if section.name == name)
