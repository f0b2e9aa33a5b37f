"""The report's tables of engines beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.engines import ENGINES
from benchmarks.gpu.figures import beside_floor, digits, with_range
from benchmarks.gpu.findings import Floors, Result, Spread, baseline, results
from benchmarks.gpu.records import Row
from loadtest.report.render import Block, Heading, Table, Text

FIRST = ENGINES[0].name
SKIPPED = next(engine.name for engine in ENGINES if "VORA_SKIP_IMAGE_ROWS" in engine.environment)


def engine_blocks(title: str, rows: Sequence[Row], floors: Floors) -> list[Block]:
    if not rows:
        return []
    found = results(rows)
    blocks: list[Block] = [Heading(title), Text(_absent(rows))]
    kinds = (
        ("ttft", "Time to first token, ms, by images in the prompt", "images"),
        ("prefill", "Prefill throughput, tokens per second, by prompts of one image", "prompts"),
        ("decode", "Decoding, tokens per second, by requests", "requests"),
    )
    for kind, above, unit in kinds:
        lines = [_line(result, found, floors) for result in found if result.kind == kind]
        if not lines:
            continue
        middle = ["engine ms", "host ms"] if kind == "ttft" else ["tokens/s"]
        head = [unit, "engine", *middle, f"time / {FIRST}", "floor ms", "times the floor"]
        blocks += [Heading(above, 3), Table(head, lines)]
    return [*blocks, *_verdict(found), *_memory(rows)]


def _line(result: Result, found: Sequence[Result], floors: Floors) -> list[str]:
    seconds = result.spread("engine_s")
    if result.kind == "ttft":
        middle = [with_range(seconds, 1e3), with_range(result.spread("host_s"), 1e3)]
    else:
        tokens = "prompt_tokens" if result.kind == "prefill" else "generated"
        middle = [with_range(result.rate(tokens))]
    first = baseline(found, result, FIRST)
    ratio = result.over(first) if first is not None and first is not result else None
    fp8 = "FP8" in result.engine
    floor = floors.seconds(result.rows[0], fp8)
    return [
        str(result.count),
        result.engine,
        *middle,
        with_range(ratio) if ratio else "–",
        *beside_floor(seconds.value, floor, 1e3),
    ]


def _verdict(found: Sequence[Result]) -> list[Block]:
    """Whether the first launch should pass over image rows."""
    ratios = []
    for result in found:
        first = baseline(found, result, FIRST)
        if result.engine == SKIPPED and result.kind != "decode" and first is not None:
            ratio = result.over(first)
            ratios += [ratio] if ratio else []
    if not ratios:
        return []
    gains, loses = all(r.high < 1 for r in ratios), all(r.low > 1 for r in ratios)
    said = (
        "faster in every pair: make it the default"
        if gains
        else "slower in every pair: leave it off"
        if loses
        else "no gain in every pair: leave it off"
    )
    return [Text(f"Passing over image rows in the first launch is **{said}**.")]


def _memory(rows: Sequence[Row]) -> list[Block]:
    last = {row["engine"]: row for row in rows if row.get("kind") == "memory" and "peak_gib" in row}
    if not last:
        return []
    lines = [
        [
            name,
            digits(row["allocated_gib"]),
            digits(row["peak_gib"]),
            digits(row["reserved_gib"]),
        ]
        for name, row in last.items()
    ]
    head = ["engine", "allocated GiB", "peak GiB", "reserved GiB"]
    return [Heading("GPU memory, the KV cache included", 3), Table(head, lines)]


def _absent(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if "error" in row:
            what = "did not start" if row["kind"] == "start" else f"failed at {row['kind']}"
            lines.append(f"- **{row['engine']}** {what}: {row['error']}")
        elif row["kind"] == "start":
            lines.append(f"- {row['engine']}: ready after {row['seconds']:.0f} s")
    return "\n".join(lines)


def saturation_blocks(title: str, rows: Sequence[Row]) -> list[Block]:
    lines = []
    for result in results(rows):
        images = result.rate("requests")
        host = Spread.of(row["host_cpu_s"] / row["requests"] for row in result.rows)
        cores = images.value * host.value
        lines.append([result.engine, with_range(images), with_range(host, 1e3), digits(cores)])
    if not lines:
        return []
    head = ["engine", "images/s in the engine", "host CPU ms an image", "cores to keep up"]
    return [
        Heading(title),
        Text("Images have their final size; requests are processed first and computed then."),
        Table(head, lines),
    ]
