"""What a report says, in order."""

from __future__ import annotations

from typing import Any

from loadtest.report.plots import breakdown_bars, rate_curves, ratio_forest, ttft_bars
from loadtest.report.render import Block, Heading, Plot, Table, Text

_LIMITS = """\
- It says nothing about the quality of answers. {random}
- It holds for this machine, these versions and settings. Ratios carry over better than times.
- A closed loop with one request at a time shows latency without queueing; only the rate sweeps \
show what queueing adds.
- The expectation counts arithmetic and bytes. It knows nothing of kernels, threads, Python, or \
how well a matrix of a given shape runs on this processor.
- Client and servers share the machine unless servers are given by URL; the client's own work is \
in every time, on both sides of each ratio.
- Memory is the whole process tree's, with the engine's KV cache as it was reserved; it is not the \
least that would do.
"""


def blocks_for(found: dict[str, Any], notes: str | None) -> list[Block]:
    """The report's blocks.

    Args:
        found: what ``summarise`` gives.
        notes: Markdown of the reader's own.
    """
    blocks: list[Block] = _verdicts(found)
    if notes:
        blocks.append(Text(notes))
    blocks += _ratios(found)
    blocks += _latency(found)
    blocks += _resources(found)
    blocks += _breakdown(found)
    blocks += _rates(found)
    blocks += _settings(found)
    random = [c["random"] for c in found["head"]["checkpoints"].values()]
    said = (
        "Weights are random: times do not depend on their values, accuracy does."
        if any(random)
        else "Accuracy is not measured here."
    )
    blocks += [Heading("What this does not say"), Text(_LIMITS.format(random=said))]
    return blocks


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits without an exponent, or a dash."""
    if value is None or value != value:
        return "–"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text else text


def interval(found: dict[str, Any], sign: bool = False) -> str:
    """``value [low, high]``."""
    form = (lambda v: ("+" if v > 0 else "") + number(v)) if sign else number
    if found["low"] is None:
        return f"{form(found['value'])} (too few rounds for an interval)"
    return f"{form(found['value'])} [{form(found['low'])}, {form(found['high'])}]"


def _verdicts(found: dict[str, Any]) -> list[Block]:
    lines = []
    for point in found["points"]:
        for pair in point["compared"]:
            if "ttft" not in pair:
                lines.append(
                    f"- {point['id']}: {pair['first']} and {pair['second']} have no round without "
                    "errors in common, so nothing is compared."
                )
                continue
            ratio, gap = pair["ttft"]["ratio"], pair["ttft"]["difference"]
            ms = {k: None if gap[k] is None else 1000 * gap[k] for k in ("value", "low", "high")}
            lines.append(
                f"- {point['id']}: time to first token of **{pair['first']}** over "
                f"**{pair['second']}**: **{interval(ratio)}**, that is {interval(ms, True)} ms; "
                f"{pair['ttft']['verdict']}."
            )
    broken = "\n".join(f"- **Not met:** {reason}" for reason in found["broken"])
    text = "\n".join(lines) or "Nothing was compared."
    return [Heading("In short"), Text(text), *([Text(broken)] if broken else [])]


def _ratios(found: dict[str, Any]) -> list[Block]:
    rows, plotted = [], []
    for point in found["points"]:
        for pair in point["compared"]:
            expected = pair.get("expected", {})
            for name in ("ttft", "tpot", "e2e", "requests_per_s", "cpu_s_per_request", "memory"):
                if name not in pair:
                    continue
                ratio = pair[name]["ratio"]
                mark = "**yes**" if name in pair.get("unlike_expected", []) else ""
                label = f"{pair['first']} / {pair['second']}"
                rows.append(
                    [
                        point["id"],
                        label,
                        name,
                        interval(ratio),
                        number(expected.get(name)),
                        mark,
                        pair[name]["verdict"],
                        str(ratio["rounds"])
                        + (f" ({pair['left_out']} left out)" * bool(pair["left_out"])),
                    ]
                )
                if name in ("ttft", "tpot", "cpu_s_per_request"):
                    plotted.append(
                        {"label": f"{point['id']} {label} {name}", "expected": expected.get(name)}
                        | {key: ratio[key] for key in ("value", "low", "high")}
                    )
            if "weights" in expected:
                label = f"{pair['first']} / {pair['second']}"
                rows.append(
                    [
                        point["id"],
                        label,
                        "weights on disk",
                        number(expected["weights"]),
                        "",
                        "",
                        "",
                        "",
                    ]
                )
    if not rows:
        return []
    head = [
        "point",
        "pair",
        "measure",
        "ratio [95 %]",
        "on paper",
        "off by > 15 %",
        "verdict",
        "rounds",
    ]
    blocks: list[Block] = [Heading("Ratios, round by round"), Table(head, rows)]
    if plotted:
        blocks.append(
            Plot(ratio_forest(plotted), "Measured ratios and what was expected on paper.")
        )
    return blocks


def _latency(found: dict[str, Any]) -> list[Block]:
    rows = []
    for point in found["points"]:
        for name, got in point["servers"].items():
            cells = [point["id"], name, str(got["requests"]), str(got["failed"])]
            for key in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"):
                values = got[key]
                cells.append(
                    " / ".join(number(values.get(p)) for p in ("p50", "p90", "p99"))
                    if values
                    else "–"
                )
            cells += [
                number(got["requests_per_s"]),
                number(got["output_tokens_per_s"]),
                number(got.get("goodput_per_s")),
            ]
            rows.append(cells)
    closed = [point for point in found["points"] if point["rate"] is None]
    head = ["point", "server", "good", "failed", "TTFT", "TPOT", "between tokens", "end to end"]
    head += ["requests/s", "tokens/s", "goodput/s"]
    blocks: list[Block] = [
        Heading("Latency and throughput"),
        Text("Milliseconds, p50 / p90 / p99, of requests that succeeded, all rounds together."),
        Table(
            head,
            rows,
        ),
    ]
    if closed:
        blocks.append(Plot(ttft_bars(closed), "Time to first token by point and server."))
    return blocks


def _resources(found: dict[str, Any]) -> list[Block]:
    rows, paper = [], []
    for point in found["points"]:
        for name, got in point["servers"].items():
            rows.append(
                [
                    point["id"],
                    name,
                    number(got["prompt_tokens"], 4),
                    number(got.get("image_tokens"), 4),
                    number(got["cpu_s_per_request"]),
                    number(got["own_cpu_s_per_request"]),
                    number(got["peak_rss_mib"], 4),
                    number(got["pss_mib"], 4),
                    number(got["gpu_mib"], 4),
                ]
            )
            expected = got.get("expected")
            if expected:
                paper.append(
                    [
                        point["id"],
                        name,
                        number(expected["image_tokens"], 4),
                        number(expected["prefill_tflop"], 4),
                        number(expected["vision_tflop"], 4),
                        number(expected["decode_mb_per_token"], 4),
                        number(expected["kv_mb_per_request"]),
                        number(expected["weights_gb"]),
                    ]
                )
    head = ["point", "server", "prompt tokens", "of an image", "CPU s/request", "of it own"]
    head += ["peak RSS MiB", "PSS MiB", "GPU MiB"]
    blocks: list[Block] = [Heading("Tokens, CPU, memory"), Table(head, rows)]
    if paper:
        head = ["point", "server", "image tokens", "prefill TFLOP", "of it vision"]
        head += ["MB read a token (16 bit)", "KV MB/request (16 bit)", "weights GB"]
        blocks += [Heading("On paper", 3), Table(head, paper)]
    return blocks


def _breakdown(found: dict[str, Any]) -> list[Block]:
    rows, plotted = [], []
    parts = ["transport", "gateway_overhead", "gateway_queue", "gateway_fetch", "gateway_decode"]
    parts += ["processing", "queue", "prefill"]
    for point in found["points"]:
        for name, got in point["servers"].items():
            spent = got["breakdown_ms"]
            if "prefill" in spent:
                rows.append([point["id"], name, *(number(spent.get(part)) for part in parts)])
                plotted.append((f"{point['id']} {name}", spent))
    if not rows:
        return []
    note = (
        "Means in milliseconds, from the servers' own metrics. `prefill` includes the vision "
        "encoder, `processing` decoding and preparing images in the engine; the gateway's fetching "
        "and decoding are part of its overhead; `transport` is what no server accounts for."
    )
    blocks: list[Block] = [
        Heading("Where the time to first token goes"),
        Text(note),
        Table(["point", "server", *(part.replace("_", " ") for part in parts)], rows),
        Plot(breakdown_bars(plotted), "Mean time to first token by part."),
    ]
    return blocks


def _rates(found: dict[str, Any]) -> list[Block]:
    swept = [point for point in found["points"] if point["rate"] is not None]
    if not swept:
        return []
    blocks: list[Block] = [Heading("Rate sweep")]
    for workload in dict.fromkeys(point["workload"] for point in swept):
        points = [point for point in swept if point["workload"] == workload]
        blocks.append(Plot(rate_curves(points), f"{workload}: TTFT against offered rate."))
    rows = [
        [best["workload"], best["size"], best["server"], number(best["rate_per_s"])]
        for best in found["best_rates"]
    ]
    if rows:
        text = "The highest offered rate that meets the service level; a dash where none did."
        head = ["workload", "size", "server", "requests/s"]
        blocks += [Text(text), Table(head, rows)]
    return blocks


def _settings(found: dict[str, Any]) -> list[Block]:
    head = found["head"]
    settings = head["settings"]
    machine = head["machine"]
    lines = [
        f"- machine: {machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['isa'])}), {machine['memory_gib']} GiB, "
        f"GPUs: {', '.join(machine['gpus']) or 'none'}, {machine['system']}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in head['versions'].items())}, "
        f"Python {machine['python']}",
        f"- sent and timed by {head.get('generator', 'nobody yet')}, seed {settings['seed']}",
        f"- from {head['started']} to {head.get('ended', 'its interruption')}; load average "
        f"{head['load_at_start'][0]:.2f} at the start, "
        f"{head.get('load_at_end', [float('nan')])[0]:.2f} at the end (servers included)",
        f"- rounds: {settings['repeats']}, order {settings['order']}, "
        + ("all servers running" if settings["together"] else "one server at a time"),
        f"- all engines: `{' '.join(settings['engine']['args'])}`, environment "
        f"`{' '.join(f'{k}={v}' for k, v in settings['engine']['env'].items())}`",
    ]
    for spec in settings["servers"]:
        made = head["checkpoints"].get(spec["name"])
        what = f"{made['family']}, {made['params'] / 1e6:.0f}M weights" if made else "not known"
        own = " ".join(spec["args"])
        lines.append(
            f"- server {spec['name']}: {spec['kind']}, {what}" + (f", `{own}`" if own else "")
        )
    for workload in settings["workloads"]:
        lines.append(
            f"- workload {workload['name']}: {workload['requests']} requests a round, "
            f"{workload['text_tokens']} words, {workload['output_tokens']} tokens answered"
            + (f", images {workload['images']}" if workload["images"] else ", no images")
        )
    return [Heading("Machine, versions, settings"), Text("\n".join(lines))]
