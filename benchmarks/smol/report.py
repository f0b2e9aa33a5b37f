"""The report of a run: stages, losses, throughput with MFU, accuracies, and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Dense bfloat16 peak of an H100 SXM, TFLOP/s.
H100 = 989.0
_GPU = "gpu"


def flops_per_token(summary: dict[str, Any]) -> tuple[float, float]:
    """Operations of training a token, and what an image token adds.

    Frozen weights cost the forward pass and the gradients of activations, trained ones their own
    gradients too; attention is left out.

    Args:
        summary: of a run.
    """
    counts = summary["parameters"]
    frozen = counts["LLM"] - summary["looked_up"]
    image = 6.0 * (counts["embedder"] + counts["auxiliary heads"]) + 2.0 * counts["teacher"]
    return 4.0 * frozen + 6.0 * counts["LoRA"], image


def throughput(summary: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, float]:
    """Tokens, images and 10^12 operations a second, over the second half of a run.

    Args:
        summary: of the run.
        lines: of its metrics.
    """
    late = lines[len(lines) // 2 :]
    seconds = [line["tokens"] / line["tokens_per_second"] for line in late]
    tokens = summary["processes"] * sum(line["tokens"] for line in late) / sum(seconds)
    images = sum(line["images"] for line in late) / sum(seconds)
    token, image = flops_per_token(summary)
    work = token * tokens + image * images * summary["image_tokens"]
    return {"tokens": tokens, "images": images, "tflops": work / 1e12}


def write_report(out: Path, size: str, page: Path | None) -> str:
    """The report as Markdown; written to a file too where one is named.

    Args:
        out: of the run.
        size: its name.
        page: the file.
    """
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in every if line["stage"] == "pretrain"]
    held = [line for line in every if line["stage"] != "pretrain"]
    served = out / "served.json"
    parts = [_head(summary, size), _stages(summary), _losses(lines, held)]
    parts.append(_speed(summary, lines))
    if served.exists():
        parts.append(_served(json.loads(served.read_text(encoding="utf-8"))))
    text = "\n\n".join(parts) + "\n"
    if page is not None:
        page.write_text(text, encoding="utf-8")
    return text


def _head(summary: dict[str, Any], size: str) -> str:
    counts = summary["parameters"]
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    teacher = ", ".join(
        f"{name.removesuffix('_accuracy')} {value:.0%}"
        for name, value in summary["teacher"].items()
    )
    return (
        f"`python -m benchmarks.smol train --size {size}`, {summary['date']}, "
        f"{summary['device']}, torch {summary['torch']}, load average {summary['load']:.1f} at the "
        f"end. Parameters: {listed}. The teacher, on validation images: {teacher}."
    )


def _stages(summary: dict[str, Any]) -> str:
    rows = [
        f"| {name} | {spent['wall_s']:.0f} | {spent['processor_s']:.0f} |"
        for name, spent in summary["stages"].items()
    ]
    total = {
        key: sum(spent[key] for spent in summary["stages"].values())
        for key in ("wall_s", "processor_s")
    }
    rows.append(f"| **all** | **{total['wall_s']:.0f}** | **{total['processor_s']:.0f}** |")
    head = "| Stage | Seconds | Processor seconds |\n| --- | ---: | ---: |\n"
    return head + "\n".join(rows)


def _losses(lines: list[dict[str, Any]], held: list[dict[str, Any]]) -> str:
    chosen = sorted({round(i * (len(lines) - 1) / 5) for i in range(6)})
    rows = [
        f"| {lines[i]['step']} | {lines[i]['lm']:.3f} | {lines[i]['distill']:.3f} |" for i in chosen
    ]
    text = "| Step | Language modelling | Distillation |\n| ---: | ---: | ---: |\n" + "\n".join(
        rows
    )
    if held:
        rows = [
            f"| {line['step']} | {line['held_out_lm']:.3f} | {line['held_out_accuracy']:.1%} |"
            for line in held
        ]
        text += "\n\n| Step | Held-out loss | Held-out answers right |\n| ---: | ---: | ---: |\n"
        text += "\n".join(rows)
    return text


def _speed(summary: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    rates = throughput(summary, lines)
    seen = sum(line["images"] for line in lines) / len(lines) * summary["steps"]
    mfu = (
        f", {rates['tflops'] / H100:.1%} of an H100's {H100:.0f}"
        if summary["device"] != "CPU"
        else ""
    )
    return (
        f"{summary['steps']} steps, {seen:,.0f} images. In the second half: {rates['tokens']:,.0f} "
        f"tokens and {rates['images']:,.1f} images a second, {rates['tflops']:.4g} TFLOP/s{mfu}."
    )


def _served(found: dict[str, Any]) -> str:
    rows = [
        f"| {row['group']} | {row['questions']} | {row['accuracy']:.0%} | {row['blank']:.0%} | "
        f"{row['chance']:.0%} | {_probability(row['p'])} |"
        for row in found["groups"]
    ]
    text = (
        "| Served, merged | Questions | Right | Blank images | Chance | p |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n" + "\n".join(rows)
    )
    rows = [
        f"| {name} | {m['same_answers']:.0%} | {m['agreement']:.1%} | {m['perplexity']:.3f} |"
        for name, m in found["text"].items()
    ]
    return text + (
        "\n\np is that of a one-sided sign test (McNemar's, exact) of the answers with the image "
        "against those with a blank one."
        f"\n\n{found['texts']} held-out texts in the base LLM's own words:\n\n"
        "| Served | Same answers | Same next tokens | Perplexity |\n"
        "| --- | ---: | ---: | ---: |\n" + "\n".join(rows)
    )


def _probability(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"
